"""Every message type of the pipeline, one frozen struct each.

JSON, UTF-8, one object a record. Unknown fields are ignored; where a message travels on inside another
(``ProfiledTransaction.transaction``, ``ProfiledLabel.label``) its original bytes are kept, unknown fields
included. A new field needs a default; a field never changes its type. Enumerations are open: they are
plain strings here, and a consumer tolerates a value that it does not know.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
"""A non-empty identifier of at most 256 characters."""

Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
"""RFC 3339 with an offset; the pipeline keeps microseconds."""

Currency = Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]
"""An ISO 4217 alphabetic code."""

Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""An offset in the log of a partition, as Kafka counts: 63 bits."""


Description = str | float
"""Text, or a number that stands for its text."""

LocalTime = Annotated[str, Meta(extra={"clock": True})]
"""ISO 8601, with or without an offset."""


def _field(meaning: str, *, column: bool = False, kernels: bool = False, personal: bool = False) -> Meta:
    """Declare a field of a transaction.

    Args:
        meaning: Its meaning, for people.
        column: Whether `pipeline.engine.records.columns.Transactions` has a column of its name.
        kernels: Whether declared features and filters can read it by its name. Then it is text.
        personal: Whether it may say who somebody is.
    """
    return Meta(description=meaning, extra={"column": column, "kernels": kernels, "personal": personal})


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The base of all messages. Frozen values form no cycles, so that the garbage collector need not look at them."""

    schema_version: int = 1


class Transaction(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A card transaction, as a producer writes it to ``transactions`` (key: ``card_id``)."""

    # The one declaration of each field: columns, readers, tokens, JSON Schema and pages follow (`schemas.fields`).

    transaction_id: Annotated[Identifier, _field("unique within its card", column=True)]
    event_time: Annotated[Timestamp, _field("when it happened; not after the record's timestamp")]
    card_id: Annotated[Identifier, _field("the card, or a token of it", column=True, personal=True)]
    merchant_id: Annotated[Identifier, _field("the merchant or terminal", column=True)]
    amount: Annotated[
        Decimal, _field("decimal in the currency's major unit, with no more decimals than the currency has")
    ]
    currency: Annotated[Currency, _field("ISO 4217; the rate table has it", column=True)]
    account_id: Annotated[Description | None, _field("as you have it", personal=True, kernels=True)] = None
    transaction_type: Annotated[
        str,
        _field(
            "`purchase`, `refund`, `reversal`, `cash` or `verification`; purchases and cash enter the windows, all are "
            "scored",
            column=True,
        ),
    ] = "purchase"
    original_transaction_id: Annotated[Description | None, _field("what a refund or reversal refers to")] = None
    authorisation: Annotated[Description | None, _field("`approved` or `declined`", kernels=True)] = None
    local_time: Annotated[
        LocalTime | None,
        _field(
            "the clock at the place of the transaction, with or without offset (`2024-03-01T20:15:30`); hour and "
            "weekday are taken from it"
        ),
    ] = None
    device_id: Annotated[Description | None, _field("as you have it", personal=True, kernels=True)] = None
    ip: Annotated[Description | None, _field("as you have it", personal=True, kernels=True)] = None
    country: Annotated[Description | None, _field("as you have it", kernels=True)] = None
    channel: Annotated[Description | None, _field("as you have it", kernels=True)] = None
    mcc: Annotated[Description | None, _field("merchant category code, as you have it", kernels=True)] = None
    attributes: Annotated[
        dict[str, str | float | None] | None,
        _field("a flat object of strings, numbers and nulls; declared numbers are features"),
    ] = None


class Label(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A source's report on a transaction, on ``labels`` (key: ``card_id``); a correction is a new label."""

    transaction_id: Identifier
    card_id: Identifier
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    labelled_at: Timestamp
    label_id: str | None = None
    fraud_type: str | None = None
    alert_id: str | None = None
    analyst: str | None = None
    note: str | None = None


class RecordPosition(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """The position of a record, or of a range of records, in the log of a topic.

    Decisions, dead letters and control records all name records by it (``docs/invariants.md``).
    """

    topic: str
    """Without prefix."""
    partition: Annotated[int, msgspec.Meta(ge=0)]
    offset: Offset
    """Offset of the record, or of the first one of a range."""
    end: Offset | None = None
    """Offset behind the last record of a range; absent for a single record."""
    row: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Row within a record that holds many; absent where a record is one row."""


class LogPosition(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A position in the ``profiled`` log; (``offset``, ``row``) is the order of a partition."""

    partition: int
    offset: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
    """-1 in a decision that a program made of history, which lies on no log."""
    row: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Row within the block at ``offset``."""


class ProfiledTransaction(Message, frozen=True, kw_only=True, tag_field="kind", tag="transaction"):
    """An accepted transaction with its card features: a row of a block on ``profiled``, as programs show it."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time_us: int
    """Microseconds since 1970-01-01T00:00:00Z."""
    amount_base_minor: int
    """Minor units of the base currency, converted with the rate table that ``rates_version`` names."""
    rates_version: str
    counts: bool
    """True if the transaction enters windows (purchases and cash do)."""
    card_features: bytes
    """Values of ``pipeline.features.catalogue.CARD_FEATURES`` (transaction features first), in that order.

    64-bit floats, little-endian, NaN for no value; base64 in JSON.
    """
    kernel: str
    """The kernel version that computed ``card_features``."""
    case_id: str
    case_sequence: int
    source: RecordPosition
    ingested_at: Timestamp
    transaction: msgspec.Raw
    """The producer's own bytes, or what a mapping has made of them."""
    read: RecordPosition | None = None
    """Position at which the card agent read the record, where that is not ``source``: on ``rerouted``."""
    outlier: bool = False
    """True if the amount is an outlier for the card."""


class ProfiledLabel(Message, frozen=True, kw_only=True, tag_field="kind", tag="label"):
    """A label that stands behind its transaction: a row of a block on ``profiled``, as programs show it.

    Only labels that change what is known about the transaction travel on; ``known`` is what holds from
    ``known_at_us`` on: ``fraud``, ``legitimate`` or ``none``.
    """

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time_us: int
    """Event time of the labelled transaction."""
    known: str
    known_at_us: int
    source: RecordPosition
    label: msgspec.Raw


Profiled = ProfiledTransaction | ProfiledLabel


class ModelScores(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Each model's own probability of fraud."""

    lightgbm: float
    river: float


class Versions(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """The versions that decided a transaction; enough to decide it again."""

    lightgbm: str
    river: str
    policy: str
    kernel: str
    rates: str
    rules: str = ""
    """The set of rules; absent without rules."""
    lists: str = ""
    """What the lists held; absent without lists."""


class Decision(Message, frozen=True, kw_only=True):
    """The pipeline's decision about one transaction, on ``decisions`` (key: ``card_id``)."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: Timestamp
    amount: Decimal
    currency: str
    amount_base: float
    """In the major unit of ``base_currency``."""
    base_currency: str
    transaction_type: str = "purchase"
    score: float
    """Calibrated probability of fraud of the blend, 0 to 1."""
    model_scores: ModelScores
    logit: float
    """LightGBM's calibrated log-odds under ``versions.lightgbm``; what the River layer builds on."""
    river_logit: float | None = None
    """The online model's log-odds under ``versions.river``; absent in decisions of earlier releases."""
    action: str
    """``allow`` or ``alert``."""
    selection: str | None = None
    """Why an alert was raised: ``list``, ``score``, ``rule`` or ``audit``."""
    selection_probability: float = 1.0
    """Probability with which this transaction would be put before an analyst."""
    rule_hits: list[str] = []
    """Codes of the active rules that hit; absent where none does. With ``shadow_hits`` 20 at most."""
    shadow_hits: list[str] = []
    """Codes of the rules in shadow that hit; they raise no alert."""
    list_hits: list[str] = []
    """Names of the lists with an entry that holds; absent where none has. 20 at most."""
    overruled: dict[str, list[str]] = {}
    """What would have raised an alert, by what overruled it; absent where nothing was overruled.

    By the name of a list, of suppressions with the entry behind it (``quiet/1a2b3c4d``): ``score``, codes of rules, and
    names of lists.
    """
    threshold: float
    features: dict[str, float | None] | None = None
    """Sent where ``selection`` is set, or in every decision (``FRAUD_PIPELINE_DECISION_FEATURES``).

    Those of every decision are on ``features``.
    """
    versions: Versions
    source: RecordPosition
    """Identifies the decision."""
    log: LogPosition
    case_id: str
    case_sequence: int
    ingested_at: Timestamp
    decided_at: Timestamp


class DecisionFeatures(Message, frozen=True, kw_only=True):
    """Features of a decision exactly as the models saw them: a row of a block on ``features``, as programs show it."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: Timestamp
    amount_base: float
    """In the major unit of the base currency."""
    score: float
    logit: float
    river_logit: float | None = None
    """See `Decision`."""
    features: dict[str, float | None]
    versions: Versions
    source: RecordPosition
    """Equal to the ``source`` of the decision."""
    log: LogPosition


class Reason(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A reason for an alert."""

    code: str
    """Stable; analysts' systems may count by it."""
    feature: str
    value: float | None
    usual: float | None = None
    """The same quantity as the card (or merchant) usually has it, where there is one."""
    contribution: float
    """Log-odds that this reason added to the score."""
    sentence: str


class Alert(Message, frozen=True, kw_only=True):
    """A case for the analysts, on ``alerts`` (key: ``card_id``)."""

    alert_id: str
    """Derived from card, transaction and ``source``, so that a repeat is recognisable, and a transaction that is
    accepted again behind ``deduplication_days`` has another one."""
    case_id: str
    case_sequence: int
    severity: float
    """Expected loss: score times amount, in the major unit of ``base_currency``."""
    raised_at: Timestamp
    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: Timestamp
    amount: Decimal
    currency: str
    amount_base: float
    base_currency: str
    score: float
    model_scores: ModelScores
    threshold: float
    selection: str
    reasons: list[Reason]
    versions: Versions
    source: RecordPosition
    log: LogPosition


Weight = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
"""The weight of an example; one beyond takes a model out of its bounds by itself."""


class Example(Message, frozen=True, kw_only=True):
    """An example: the features as served, with what they turned out to be; on ``examples``."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: Timestamp
    amount_base: float
    label: str
    """``fraud``, ``legitimate``, ``presumed_legitimate``, or ``withdrawn`` where nothing is known any more."""
    label_source: str | None
    known_at: Timestamp
    weight: Weight
    """Inverse of the probability with which an example of this label is kept."""
    revision: int
    """0 for the first example of a transaction; a correction counts up."""
    online_weight: Weight | None = None
    """Weight with which the online model learns the label; absent in records of earlier releases: ``weight``."""
    former: str | None = None
    """The label that the online model learned of the transaction before, and that is undone now."""
    former_weight: Weight = 0.0
    """The weight with which it learned that."""
    held: bool = False
    """True if the label is part of a surge of its source: the online model does not learn it until it is released."""
    features: dict[str, float | None]
    logit: float
    river_logit: float | None = None
    """See `Decision`."""
    score: float
    versions: Versions
    log: LogPosition


class ModelVersion(Message, frozen=True, kw_only=True):
    """The content of one version, on ``models`` (key: its digest; kept for ever). Data, never code.

    The first record of a digest counts. Which versions are active is for `Activation` to say; of the River versions on
    one LightGBM version the newest record is.
    """

    name: str
    """``lightgbm``, ``river``, ``policy``, ``rates``, ``mapping``, ``features``, ``rules`` or ``lists``."""
    version: str
    digest: str
    """SHA-256 of the payload, hexadecimal."""
    published_at: Timestamp
    payload: msgspec.Raw
    """A JSON object: a model or policy as ``pipeline.scoring`` defines it, a rate table as its file has it, or a
    `schemas.mapping.FieldMapping`."""


Span = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Microseconds."""
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class CardConfig(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind", tag="card", omit_defaults=True):
    """The card agent's processing config of a batch."""

    rates_version: str
    rates_digest: str
    """First 16 hexadecimal digits of the SHA-256 of what the table says (`schemas.money.RateTable.digest`)."""
    future_tolerance_us: Span
    dedup_horizon_us: Span
    label_horizon_us: Span
    mapping_version: str = ""
    """Version of the mapping of producers' JSON (`schemas.mapping.FieldMapping`); empty without one."""
    mapping_digest: str = ""


class FeedbackConfig(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind", tag="feedback", omit_defaults=True
):
    """The feedback agent's processing config of a batch."""

    label_horizon_us: Span
    maturity_us: Span
    negative_sample_rate: Share
    reported_share: Share = 1.0
    """Share of the reported frauds whose reports come within the maturity; 1 in records of earlier releases."""


ProcessingConfig = CardConfig | FeedbackConfig


class Progress(Message, frozen=True, kw_only=True):
    """The input ranges of one batch of an agent, on ``progress`` (key: the agent's name), for one partition number.

    Committed with the batch. An agent that reads several topics replays them in the order that these records give,
    with the processing config that they name.
    """

    agent: str
    starts: dict[str, Offset]
    """Topic (without prefix) to the offset of the first record read; topics of which nothing was read are absent."""
    ends: dict[str, Offset]
    """Topic to the offset behind the last record read."""
    config: ProcessingConfig | None = msgspec.field(default=None, name="rules")
    """The processing config active at the time; absent in records of earlier releases."""
    quarantined: list[RecordPosition] = []
    """Records of the batch that were quarantined: they did not enter the state, and a restore skips them too."""


class Quarantine(Message, frozen=True, kw_only=True, tag_field="kind", tag="quarantine"):
    """A record that an agent could not process, or a range that nobody can read, on ``control``.

    Every later reading skips it. Control records are kept for ever; their header ``signature`` is that of
    `pipeline.protection.signing`.
    """

    agent: str
    position: RecordPosition
    digest: str | None = None
    """SHA-256 of the record's value, hexadecimal; absent for a range, and for a record without a value."""
    error_type: str
    """The class of the exception, or the client's name of the error."""
    message: str
    quarantined_at: Timestamp


class VersionReference(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A reference to one version on ``models``."""

    name: str
    """See `ModelVersion`."""
    version: str
    digest: str
    """See `ModelVersion`."""
    offset: Offset
    """Offset of its content on ``models``, or an earlier one from which reading finds it."""


class Activation(Message, frozen=True, kw_only=True, tag_field="kind", tag="activation"):
    """Versions that are active from here on, all of them at once, on ``control``; the others stay as they are.

    A worker keeps its versions until it has read the content of every one of these.
    """

    versions: list[VersionReference]
    activated_at: Timestamp
    step: str = "publish"
    """``publish``, ``promote``, ``rollback`` or ``pace``; open."""
    by: str = ""
    """The program or the person that decided it."""
    reason: str = ""
    """Sentence for people."""
    figures: dict[str, Any] = {}
    """The measurements and the offsets of data that it was decided by."""


class Assessment(Message, frozen=True, kw_only=True, tag_field="kind", tag="assessment"):
    """A comparison of versions and what followed from it, on ``control``. It makes nothing active."""

    versions: list[VersionReference]
    """The versions that were assessed; their contents are on ``models``."""
    against: list[VersionReference] = []
    """The versions that were active at the time."""
    outcome: str
    """``accepted``, ``rejected``, ``failed`` or ``kept``; open."""
    by: str
    reason: str
    figures: dict[str, Any] = {}
    """The measurements and the offsets of data that it was decided by."""
    assessed_at: Timestamp


class LearningSwitch(Message, frozen=True, kw_only=True, tag_field="kind", tag="learning"):
    """Stop or resume learning, on ``control``. The newest record counts; without one, models learn."""

    frozen: bool
    """While true the online model takes no example in, and no version is trained or activated by a program."""
    by: str
    reason: str
    switched_at: Timestamp


class LabelRelease(Message, frozen=True, kw_only=True, tag_field="kind", tag="release"):
    """Labels of a surge that somebody has released, on ``control``: their examples follow on ``examples`` once more."""

    source: str
    """Source of the labels."""
    examples: int
    """Number of the examples."""
    position: RecordPosition
    """Range of ``examples`` in which they were held."""
    by: str
    reason: str
    released_at: Timestamp


LIST_NAME: Final = "[a-z][a-z0-9_-]{0,63}"


class ListDefinition(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A list: what it is for, and which field its entries are compared with."""

    name: Annotated[str, msgspec.Meta(pattern=f"^{LIST_NAME}$")]
    kind: str
    """``block``, ``suppress``, ``allow`` or ``watch``."""
    field: str
    """A text of transactions; of suppressions also ``rule``, whose values are codes."""
    match: str = "text"
    """``text``: equal. ``prefix``: the field begins with the entry. ``cidr``: the address is in the network."""


class ListEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """An entry of a list."""

    list: str
    value: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    """Of a tokenised field the token."""
    owner: str
    reason: str
    expires_us: Span | None = None
    """It holds for transactions whose event time lies before this; without it, for ever."""
    cap_minor: Span | None = None
    """Of a suppression: sum of the amounts of suppressed hits at which it ends, in minor units of the base currency."""
    added_us: Span
    """When it was written."""


class ListChange(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a change of the lists, on ``lists`` (key: the change and the number of the part).

    A change counts where an activation names it, or one that follows it. The newest record of a key counts: `forget`
    writes parts again without a value.
    """

    change: str
    """SHA-256 of its parts, each without this field."""
    before: str = ""
    """The change that it follows; empty for the first."""
    part: int = 0
    parts: int = 1
    """Number of parts."""
    definitions: list[ListDefinition] = []
    removed: list[tuple[str, str]] = []
    """Lists and values, which are removed before ``entries`` are added."""
    entries: list[ListEntry] = []
    forgotten: int = 0
    """Number of values that were forgotten since: the digest is no longer that of the parts."""


class CaseEvent(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An action of a person on a case, on ``case-events`` (key: ``case_id``).

    The first record of an ``event_id`` counts. Order and time are those of the record: the broker's.
    """

    event_id: Identifier
    """Made with the form that was filled in, so that a repeated one changes nothing."""
    case_id: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    """The card's identifier and what follows it."""
    card_id: Identifier
    kind: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """``claimed``, ``noted``, ``closed``, ``snoozed``, ``reopened`` or ``undone``; ``forgotten`` of a card; open."""
    by: Identifier
    """Account of the console."""
    at: Timestamp
    """Time by the console's clock; what holds goes by the record's own time, which is the broker's."""
    note: Annotated[str, msgspec.Meta(max_length=10_000)] | None = None
    until: Timestamp | None = None
    """End of a snooze."""
    alerts: list[str] = []
    """Identifiers of the alerts that are closed, or opened again."""
    labels: list[str] = []
    """``label_id`` of the labels that were written in the same transaction."""
    undoes: str | None = None
    """The ``event_id`` of the event that is undone."""


Control = Quarantine | Activation | Assessment | LearningSwitch | LabelRelease
