"""Decisions as columns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.decision.lists import NO_LISTS, ListOutcome, ListSet, Texts, unlisted
from pipeline.decision.policy import BY_AUDIT, BY_LIST, BY_RULE, BY_SCORE, Policy
from pipeline.decision.reasons import explain
from pipeline.decision.rule_caps import Bound
from pipeline.decision.rule_program import Read
from pipeline.decision.rules import RuleSet, no_hits, reader
from pipeline.engine.records.columns import Reject, Transactions
from pipeline.engine.records.subjects import Subjects
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.blend import blend, sigmoid
from pipeline.scoring.kinds import KINDS, LIGHTGBM, RIVER, WITH_LOG_ODDS
from schemas.messages import Reason
from schemas.times import US_PER_SECOND

if TYPE_CHECKING:
    import pandas as pd

SELECTIONS: Final = (BY_SCORE, BY_RULE, BY_AUDIT, BY_LIST)


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions about the accepted transactions of a chunk, in their order; arrays have shape (n,)."""

    transactions: Transactions
    position: NDArray[np.int64]
    """Position of each among all records of the chunk, labels and repeats included."""
    partition: NDArray[np.int64]
    """Partition of the card."""
    merchant_partition: NDArray[np.int64]
    wait_us: NDArray[np.int64]
    """What the wait clock of the card's partition showed; 0 where that is not known."""
    features: NDArray[np.float64]
    """Shape (n, len(FEATURES)), NaN for no value: exactly what the models saw."""
    logits: NDArray[np.float64]
    """Shape (n, len(KINDS)): log-odds of each model."""
    score: NDArray[np.float64]
    selection: NDArray[np.int8]
    """Index of `SELECTIONS`, -1 for no alert."""
    selection_probability: NDArray[np.float64]
    hits: NDArray[np.object_]
    """Numbers of the rules that hit, of `ActiveModels.evaluated_rules`."""
    listed: NDArray[np.object_]
    """What lists say, as `pipeline.decision.lists.Listed`."""
    case_start_us: NDArray[np.int64]
    case_sequence: NDArray[np.int64]
    models: ActiveModels
    """The models that scored them."""
    base_currency: str
    rates_version: str
    duplicates: int
    """Repeats, which are not decided."""
    label_outcomes: Counter[str]
    """Outcomes of the chunk's labels, and of those that waited, as the card agent counts them."""
    rejects: tuple[Reject, ...]
    """Rows of the input that were refused since the chunk before, and labels that have waited in vain."""
    feedback: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Outcomes at the feedback agent, as it counts them; empty where nothing learns."""

    def __len__(self) -> int:
        return len(self.score)

    def under(self, models: ActiveModels) -> "Decisions":
        """The same transactions with the same features, decided by other models."""
        columns = decided(models, self.features, self.transactions)._asdict()
        return replace(self, models=models, feedback=Counter(), **columns)

    def under_policy(self, policy: Policy) -> "Decisions":
        """The same scores under a policy, with its old rules; it takes over the weights that they were made by."""
        own = self.models.policy
        if (policy.blend, policy.weights) != (own.blend, own.weights):
            policy = policy.replace(blend=own.blend, weights=own.weights)
        models, hits = self.models.under(policy), self.hits
        texts = _texts_read(models, self.transactions)
        if policy.old_rules != own.old_rules:
            hits = rule_hits(
                models.evaluated_rules, self.features, self.logits, self.score, self.transactions, models.lists, texts
            )
        selected = _selected(models, self.logits, self.score, self.features, self.transactions, hits, texts)
        return replace(self, models=models, **selected._asdict())

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Decisions":
        """Some of the rows; counts and refused rows stay those of the whole chunk."""
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        columns: dict[str, Any] = {name: value[rows] for name, value in values.items() if isinstance(value, np.ndarray)}
        return replace(self, transactions=self.transactions.take(rows), **columns)

    @property
    def logit(self) -> NDArray[np.float64]:
        """LightGBM's calibrated log-odds."""
        return self.logits[:, KINDS.index(LIGHTGBM)]

    @property
    def river_logit(self) -> NDArray[np.float64]:
        """The online model's log-odds."""
        return self.logits[:, KINDS.index(RIVER)]

    @property
    def alert(self) -> NDArray[np.bool_]:
        """True where there is an alert."""
        return self.selection >= 0

    def frame(self, *, features: bool = False) -> "pd.DataFrame":
        """Return a row a decision, in the terms of ``docs/wire-contract.md``; ``features`` adds a column for each.

        ``row`` is the transaction's number in the input; ``amount`` is in whole minor units of ``currency``; texts are
        backed by Arrow. There is no ``source``, ``log`` or time of decision, since nothing was written anywhere.
        """
        import pandas as pd

        taken, n = self.transactions, len(self)
        versions = self.models.versions(self.rates_version)
        started = pc.cast(pa.array(self.case_start_us // US_PER_SECOND), pa.string())
        columns: dict[str, pa.Array] = {
            "row": taken.row,
            "transaction_id": taken.transaction_id,
            "card_id": taken.card_id,
            "merchant_id": taken.merchant_id,
            "event_time": pa.array(taken.event_time_us).cast(pa.timestamp("us", "UTC")),
            "amount_minor": taken.amount_minor,
            "currency": taken.currency,
            "amount_base": taken.amount_base_minor / 100,
            "base_currency": _same(self.base_currency, n),
            "transaction_type": taken.transaction_type,
            "score": self.score,
            **{kind.name: sigmoid(self.logits[:, column]) for column, kind in enumerate(KINDS)},
            **{kind.log_odds: self.logits[:, column] for column, kind in WITH_LOG_ODDS},
            **outcome_columns(self.selection),
            "selection_probability": self.selection_probability,
            **self._hit_columns(),
            "threshold": np.full(n, self.models.policy.threshold),
            "case_id": pc.binary_join_element_wise(taken.card_id, started, "-"),
            "case_sequence": self.case_sequence,
            **{f"{name}_version": _same(model.version, n) for name, model in self.models.named.items()},
            "kernel_version": _same(versions.kernel, n),
            "rates_version": _same(versions.rates, n),
        }
        if features:
            columns |= {f"feature_{name}": self.features[:, column] for column, name in enumerate(FEATURES)}
        types = {pa.string(): pd.ArrowDtype(pa.string())}
        frame: pd.DataFrame = pa.table(columns).to_pandas(types_mapper=types.get)
        return frame

    def _hit_columns(self) -> dict[str, pa.Array]:
        """Return the codes of the rules that hit and the names of lists, as decisions have them."""
        rules, known = self.models.evaluated_rules, dict[tuple[int, ...], tuple[list[str], list[str]]]()
        named = [known.setdefault(numbers, rules.named(numbers)) for numbers in self.hits]
        columns = {name: [codes[at] for codes in named] for at, name in enumerate(("rule_hits", "shadow_hits"))}
        columns["list_hits"] = [[*listed.names] for listed in self.listed]
        columns["overruled_by"] = [[by for by, _ in listed.overruled] for listed in self.listed]
        return {name: pa.array(codes, pa.list_(pa.string())) for name, codes in columns.items()}

    def reasons(self, rows: NDArray[np.intp] | None = None) -> list[list[Reason]]:
        """Return the reasons of the alerts, or of ``rows``: milliseconds each.

        Sentences name amounts in the base currency alone.
        """
        rows = np.flatnonzero(self.alert) if rows is None else rows
        selections = [SELECTIONS[code] if code >= 0 else None for code in self.selection[rows].tolist()]
        features, logits, taken = self.features[rows], self.logits[rows], self.transactions.take(rows)
        read = field_reader(self.models.lists, features, logits, self.score[rows], taken)
        return explain(
            features,
            self.logit[rows],
            self.models,
            selections,
            self.hits[rows],
            read,
            self.base_currency,
            listed=self.listed[rows],
        )


def outcome_columns(selection: NDArray[np.int8]) -> dict[str, pa.DictionaryArray]:
    """The columns ``action`` and ``selection`` of a frame of decisions."""
    alert = selection >= 0
    return {
        "action": pa.DictionaryArray.from_arrays(alert.astype(np.int8), ["allow", "alert"]),
        "selection": pa.DictionaryArray.from_arrays(pa.array(selection, mask=~alert), list(SELECTIONS)),
    }


class PolicyResult(NamedTuple):
    """The result of models and policy for n transactions; as in `Decisions`."""

    logits: NDArray[np.float64]
    score: NDArray[np.float64]
    selection: NDArray[np.int8]
    selection_probability: NDArray[np.float64]
    listed: NDArray[np.object_]
    hits: NDArray[np.object_]


def decided(
    models: ActiveModels, features: NDArray[np.float64], about: Subjects | Transactions, bound: Bound | None = None
) -> PolicyResult:
    """Score transactions, evaluate the rules, and let the policy decide.

    Args:
        models: What decides.
        features: Shape (n, len(FEATURES)).
        about: The transactions: their identities are read where the policy asks, and their texts where rules or lists
            do.
        bound: Stops rules at their caps; None: nothing does.
    """
    logits = log_odds(models, features)
    score = blend(logits, models.policy.model_weights)
    texts = _texts_read(models, about)
    hits = rule_hits(models.evaluated_rules, features, logits, score, about, models.lists, texts)
    return _selected(models, logits, score, features, about, hits, texts, bound)


def _texts_read(models: ActiveModels, about: Subjects | Transactions) -> Texts:
    """Return the texts that rules and lists read; most have none to decode."""
    names = models.lists.texts(models.evaluated_rules)
    return about.text_lists(names) if names else {}


def rule_hits(
    rules: RuleSet,
    features: NDArray[np.float64],
    logits: NDArray[np.float64],
    score: NDArray[np.float64],
    about: Subjects | Transactions,
    lists: ListSet = NO_LISTS,
    texts: Texts | None = None,
) -> NDArray[np.object_]:
    """Return the numbers of the rules that hit each transaction, ascending; shape (n,)."""
    if not rules.evaluated:
        return no_hits(len(score))
    texts = about.text_lists(rules.texts) if texts is None else texts
    return rules.hits(field_reader(lists, features, logits, score, about, texts), len(score))


def field_reader(
    lists: ListSet,
    features: NDArray[np.float64],
    logits: NDArray[np.float64],
    score: NDArray[np.float64],
    about: Subjects | Transactions,
    texts: Texts | None = None,
) -> Read:
    """Return what reads the columns of transactions for rules; texts that are not among ``texts`` are decoded."""
    known = dict(texts or {})

    def text(name: str) -> Sequence[str | None]:
        return known[name] if name in known else known.setdefault(name, about.text_lists([name])[name])

    return reader(
        text,
        score,
        lambda kind: logits[:, kind],
        lambda column: features[:, column],
        lambda test: lists.truth(test, text, about.event_time_us),
    )


def log_odds(models: ActiveModels, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each model's log-odds of n transactions, LightGBM's first; shape (n, number of kinds)."""
    logit = models.lightgbm.logit(features)
    return np.stack([logit, *(model.logit(features, logit) for model in models.beside.values())], axis=1)


def _selected(
    models: ActiveModels,
    logits: NDArray[np.float64],
    score: NDArray[np.float64],
    features: NDArray[np.float64],
    about: Subjects | Transactions,
    hits: NDArray[np.object_],
    texts: Texts,
    bound: Bound | None = None,
) -> PolicyResult:
    """Let lists and the policy decide: block lists, suppressions, allow lists, rules and score, in this order.

    Caps count what lists leave: the alerts that rules raise.
    """
    policy, rules = models.policy, models.evaluated_rules
    by_score = score >= policy.threshold
    if len(models.lists):
        outcome = models.lists.apply(rules, hits, by_score, texts, about.event_time_us)
    else:
        outcome = ListOutcome(None, None, hits, unlisted(len(score)))
    left = outcome.left
    if bound is not None:
        left, hits = bound(rules, outcome.left, by_score), hits.copy()
        for row in np.flatnonzero(left != outcome.left).tolist():
            hits[row] = rules.capped(hits[row], {*outcome.left[row]} - {*left[row]})
    # Nothing but the audit sample asks who a transaction is.
    identity = about.identities() if policy.audits else np.zeros(len(score), np.uint64)
    decided = policy.decide(score, features, identity, rules.alerts(left), outcome.blocked, outcome.quiet)
    selection = np.full(len(score), -1, np.int8)
    for row in np.flatnonzero(decided.alert).tolist():
        selection[row] = SELECTIONS.index(decided.selection[row])
    return PolicyResult(logits, score, selection, decided.selection_probability, outcome.listed, hits)


def _same(text: str, n: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int8), [text])
