"""Every topic of the pipeline, declared once: name, key, value, and its one writer."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from schemas.messages import (
    Alert,
    CaseEvent,
    Control,
    Decision,
    Example,
    Label,
    ListChange,
    Message,
    ModelVersion,
    Progress,
    Transaction,
)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the pipeline needs it.

    ``partitions_like`` names the setting that gives the number of partitions: ``cards`` topics are
    co-partitioned by card, ``merchants`` topics by merchant, ``one`` has a single partition: it is one ordered log.
    """

    name: str
    key: str
    value: type[Message] | object
    writer: str
    partitions_like: str
    cleanup_policy: str = "delete"
    max_message_bytes: int = 2 * 1024 * 1024
    retention_ms: int = -1

    @property
    def is_input(self) -> bool:
        """True if anybody's producers write to it: its batches are bounded more closely."""
        return self.max_message_bytes == INPUT_BYTES

    @property
    def holds_blocks(self) -> bool:
        """True if each record holds many rows (`pipeline.engine.encoding.blocks`)."""
        return self.value == BLOCKS


BLOCKS: Final = "blocks of rows"


INPUT_BYTES: Final = 1024 * 1024 + 16 * 1024
"""Largest batch of producers, as it is compressed: one value of 1 MiB, with its key, its headers and its framing.

It bounds what a batch can expand to before anybody can look at it: gzip's best is 1,032 times as much.
"""
TRANSACTIONS: Final = Topic("transactions", "card_id", Transaction, "producers", "cards", max_message_bytes=INPUT_BYTES)
LABELS: Final = Topic("labels", "card_id", Label, "analysts, chargebacks", "cards", max_message_bytes=INPUT_BYTES)


def topic_of_labels(name: str) -> Topic:
    """Return the declaration of a topic that holds labels, as ``labels`` does."""
    return LABELS if name == LABELS.name else replace(LABELS, name=name)


PROFILED: Final = Topic(
    "profiled",
    "no key",
    BLOCKS,
    "card agent",
    "merchants",
    max_message_bytes=8 * 1024 * 1024,
)
DECISIONS: Final = Topic("decisions", "card_id", Decision, "score agent", "cards", max_message_bytes=8 * 1024 * 1024)
DECISION_FEATURES: Final = Topic(
    "features", "no key", BLOCKS, "score agent", "cards", max_message_bytes=8 * 1024 * 1024
)
"""Features of every decision as the models saw them, in its card's partition."""
ALERTS: Final = Topic("alerts", "card_id", Alert, "score agent", "cards", max_message_bytes=8 * 1024 * 1024)
CASE_EVENTS: Final = Topic("case-events", "case_id", CaseEvent, "consoles", "cards")
"""Actions of people on cases, stamped by the brokers; kept for as long as labels."""
EXAMPLES: Final = Topic("examples", "card_id", Example, "feedback agent", "one", max_message_bytes=8 * 1024 * 1024)
MODELS: Final = Topic("models", "digest", ModelVersion, "learn agent", "one", max_message_bytes=32 * 1024 * 1024)
"""The content of every version there ever was, so that every score can be computed again."""
CONTROL: Final = Topic("control", "kind of record", Control, "all agents", "one")
"""Activations of versions, and quarantines of records."""
LISTS: Final = Topic(
    "lists",
    "change and part",
    ListChange,
    "operators",
    "one",
    cleanup_policy="compact",
    max_message_bytes=8 * 1024 * 1024,
)
"""All changes of block, allow and watch lists and of suppressions; only `forget` takes something out."""
DEAD_LETTERS: Final = Topic(
    "dead-letters", "the original key", bytes, "label and card agents", "cards", max_message_bytes=16 * 1024 * 1024
)

REROUTED: Final = Topic(
    "rerouted",
    "card_id",
    "a transaction as its producer wrote it, or as its mapping reads it",
    "card agent",
    "cards",
    max_message_bytes=8 * 1024 * 1024,
)
"""Transactions that lay in another partition than their card's; the card agent reads them from here."""
ACCEPTED_LABELS: Final = Topic(
    "accepted-labels",
    "card_id",
    "a label as its producer wrote it",
    "label agent",
    "cards",
    max_message_bytes=8 * 1024 * 1024,
)
"""Labels that were checked, in their card's partition, with the time from which they count."""
PROGRESS: Final = Topic("progress", "agent", Progress, "card and feedback agents", "cards")
"""The input ranges of each batch of an agent with several input topics: the order in which a replay reads them."""

TOPICS: Final = (
    TRANSACTIONS,
    LABELS,
    ACCEPTED_LABELS,
    REROUTED,
    PROFILED,
    DECISIONS,
    DECISION_FEATURES,
    ALERTS,
    CASE_EVENTS,
    EXAMPLES,
    MODELS,
    CONTROL,
    LISTS,
    DEAD_LETTERS,
    PROGRESS,
)


def has_order(reads: Collection[Topic]) -> bool:
    """Return whether the order in which an agent reads these topics decides anything; it is then on ``progress``.

    Topics of the same messages, such as those of labels, are as one.
    """
    return len({topic.value for topic in reads}) > 1
