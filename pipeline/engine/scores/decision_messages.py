"""Decisions and alerts as messages, written a batch at once from columns.

Live decisions and those of a backtest are written here. What a message says besides a decision comes from `Subjects`.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.lists import Listed
from pipeline.decision.reasons import explain
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.json_rows import (
    Rows,
    RowWriter,
    Shape,
    encoded,
    number,
    one_of,
    same,
    text,
    timestamp,
    whole,
)
from pipeline.engine.records.subjects import Subjects
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decisions import SELECTIONS, PolicyResult, field_reader
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.kinds import KINDS, WITH_LOG_ODDS

_ALERT_ID, _REASONS = len(col.TEXTS), len(col.TEXTS) + 1
_ACTION, _SELECTION, _VERSIONS, _HITS = range(len(col.WHOLES), len(col.WHOLES) + 4)
"""Columns behind those of a row."""
_BASE_CURRENCY, _THRESHOLD, _NOW, _ALLOW, _ALERT, _UNSELECTED = range(6)
"""Constants of a batch; behind them are those of `SELECTIONS`, versions, and members that name hits of rules."""
_FIRST_VERSIONS: Final = _UNSELECTED + 1 + len(SELECTIONS)
_AMOUNT_BASE, _SCORE, _PROBABILITY, _FIRST_SCORE = range(4)
_FIRST_LOG_ODDS: Final = _FIRST_SCORE + len(KINDS)
_NUMBERS: Final = _FIRST_LOG_ODDS + len(WITH_LOG_ODDS)
"""Numbers of a decision besides its features."""

_MODEL_SCORES: Final = {kind.name: number(at) for at, kind in enumerate(KINDS, _FIRST_SCORE)}
_LOG_ODDS: Final = {kind.log_odds: number(at) for at, (_, kind) in enumerate(WITH_LOG_ODDS, _FIRST_LOG_ODDS)}
_SOURCE: Final = {
    "topic": text(col.SOURCE),
    "partition": whole(col.SOURCE_PARTITION),
    "offset": whole(col.SOURCE_OFFSET),
}
_LOG: Final = {"partition": whole(col.LOG_PARTITION), "offset": whole(col.LOG_OFFSET), "row": whole(col.LOG_ROW)}
_LONGEST_AMOUNT: Final = 32
"""Characters of an amount that a sentence repeats."""
NOT_READ: Final = -1
"""In place of an offset in ``profiled`` of a decision that a program made of history."""
DECISION: Final[Shape] = {
    "schema_version": b"1",
    "transaction_id": text(col.ID),
    "card_id": text(col.CARD),
    "merchant_id": text(col.MERCHANT),
    "event_time": timestamp(col.EVENT_US),
    "amount": encoded(col.AMOUNT),
    "currency": text(col.CURRENCY),
    "amount_base": number(_AMOUNT_BASE),
    "base_currency": same(_BASE_CURRENCY),
    "transaction_type": text(col.TYPE),
    "score": number(_SCORE),
    "model_scores": _MODEL_SCORES,
    **_LOG_ODDS,
    "action": one_of(_ACTION),
    "selection": one_of(_SELECTION),
    "selection_probability": number(_PROBABILITY),
    "": one_of(_HITS),
    "threshold": same(_THRESHOLD),
    "features": {name: number(_NUMBERS + column) for column, name in enumerate(FEATURES)},
    "versions": one_of(_VERSIONS),
    "source": _SOURCE,
    "log": _LOG,
    "case_id": text(col.CASE),
    "case_sequence": whole(col.CASE_SEQUENCE),
    "ingested_at": timestamp(col.INGESTED_US),
    "decided_at": same(_NOW),
}
_SLIM_DECISION: Final[Shape] = {name: value for name, value in DECISION.items() if name != "features"}
_SEVERITY: Final = _NUMBERS
ALERT: Final[Shape] = {
    "schema_version": b"1",
    "alert_id": text(_ALERT_ID),
    "case_id": text(col.CASE),
    "case_sequence": whole(col.CASE_SEQUENCE),
    "severity": number(_SEVERITY),
    "raised_at": same(_NOW),
    **{name: DECISION[name] for name in ("transaction_id", "card_id", "merchant_id", "event_time", "amount")},
    **{name: DECISION[name] for name in ("currency", "amount_base", "base_currency", "score", "model_scores")},
    "threshold": same(_THRESHOLD),
    "selection": one_of(_SELECTION),
    "reasons": encoded(_REASONS),
    **{name: DECISION[name] for name in ("versions", "source", "log")},
}
_encode = msgspec.json.Encoder(decimal_format="number").encode
_SELECTIONS: Final = [*map(_encode, SELECTIONS)]


class DecisionBatch(NamedTuple):
    """Decisions about n transactions."""

    subjects: Subjects
    features: NDArray[np.float64]
    """Shape (n, len(FEATURES))."""
    decided: PolicyResult
    models: ActiveModels
    """Models that decided."""
    now: datetime
    """When."""

    def take(self, rows: NDArray[np.intp]) -> "DecisionBatch":
        """Return some rows."""
        columns: list[NDArray[Any]] = [column[rows] for column in self.decided]
        return self._replace(
            subjects=self.subjects.take(rows), features=self.features[rows], decided=PolicyResult(*columns)
        )


class DecisionWriter:
    """Writes decisions and alerts."""

    def __init__(self, base_currency: str, *, all_features: bool = False) -> None:
        """Compile the writers; the arguments are those of `Decider`."""
        self._base_currency, self._all_features = base_currency, all_features
        self._decisions, self._slim, self._alerts = RowWriter(DECISION), RowWriter(_SLIM_DECISION), RowWriter(ALERT)
        self._models: ActiveModels | None = None
        self._encoded: dict[bytes, bytes] = {}
        """Versions that decisions of the same models name, by rate table."""

    def decisions(self, batch: DecisionBatch) -> Iterator[bytes]:
        """Write the value of each decision, with its features where it is selected."""
        selected = batch.decided.selection >= 0
        if self._all_features or selected.all():
            return self._with_features(batch)
        slim = self._slim.write(self._rows(batch, _numbers(batch, 0)))
        if not selected.any():
            return slim
        full = self._with_features(batch.take(np.flatnonzero(selected)))
        return (
            next(full) if has_features else value for value, has_features in zip(slim, selected.tolist(), strict=True)
        )

    def _with_features(self, batch: DecisionBatch) -> Iterator[bytes]:
        numbers = _numbers(batch, len(FEATURES))
        numbers[:, _NUMBERS:] = batch.features
        return self._decisions.write(self._rows(batch, numbers))

    def _rows(self, batch: DecisionBatch, numbers: NDArray[np.float64]) -> Rows:
        subjects = batch.subjects
        decided, constants = self._decided(batch)
        return Rows(subjects.text, subjects.spans, np.concatenate([subjects.wholes, decided]), numbers, constants)

    def alerts(self, batch: DecisionBatch) -> Iterator[bytes]:
        """Write an alert for each row, all of which raise one. Takes some hundred microseconds a row."""
        subjects, numbers = batch.subjects, _numbers(batch, 1)
        selections = [SELECTIONS[code] for code in batch.decided.selection.tolist()]
        home = self._home_amounts(subjects)
        reasons = explain(
            batch.features,
            batch.decided.logits[:, 0],
            batch.models,
            selections,
            batch.decided.hits,
            field_reader(batch.models.lists, batch.features, batch.decided.logits, batch.decided.score, subjects),
            self._base_currency,
            home,
            batch.decided.listed,
        )
        sources = subjects.wholes[[col.SOURCE_PARTITION, col.SOURCE_OFFSET]].T.tolist()
        identified = zip(subjects.identities().tolist(), sources, strict=True)
        more = [f"{identity:016x}-{partition}-{offset}".encode() for identity, (partition, offset) in identified]
        more += [_encode(alert_reasons) for alert_reasons in reasons]
        ends = len(subjects.text) + np.cumsum([0, *map(len, more)])
        added = np.stack([ends[:-1], ends[1:]], axis=1).reshape(2, subjects.rows, 2)
        numbers[:, _SEVERITY] = [
            round(score * amount, 2)
            for score, amount in zip(numbers[:, _SCORE].tolist(), numbers[:, _AMOUNT_BASE].tolist(), strict=True)
        ]
        rows = self._rows(batch, numbers)
        text, spans = b"".join((subjects.text, *more)), np.concatenate([subjects.spans, added])
        return self._alerts.write(rows._replace(text=text, spans=spans))

    def _home_amounts(self, subjects: Subjects) -> list[str]:
        """Amounts that are not in the base currency, as their producers wrote them, each with its code."""
        return [
            "" if currency == self._base_currency or len(amount) > _LONGEST_AMOUNT else f"{amount} {currency}"
            for currency, amount in zip(subjects.strings(col.CURRENCY), subjects.strings(col.AMOUNT), strict=True)
        ]

    def _decided(self, batch: DecisionBatch) -> tuple[NDArray[np.int64], list[bytes]]:
        """Return action, selection, versions and hits of each row, and the JSON that they are numbers of.

        Shape (4, n).
        """
        subjects, selection = batch.subjects, batch.decided.selection
        decided = np.empty((4, subjects.rows), np.int64)
        action, selected, versions, hits = decided
        action[:] = np.where(selection < 0, _ALLOW, _ALERT)
        selected[:] = selection + (_UNSELECTED + 1)
        codes, versions[:] = subjects.wholes[col.SAME_RATES], _FIRST_VERSIONS
        first: Any = [0]
        if (codes != codes[:1]).any():
            _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
            versions += inverse
        rates = [subjects.text[start:end] for start, end in subjects.spans[col.RATES, first[: subjects.rows]].tolist()]
        named: dict[tuple[tuple[int, ...], Listed], int] = {}
        first_hits, pairs = _FIRST_VERSIONS + len(rates), zip(batch.decided.hits, batch.decided.listed, strict=True)
        hits[:] = [named.setdefault(pair, first_hits + len(named)) for pair in pairs]
        return decided, [
            _encode(self._base_currency),
            _encode(batch.models.policy.threshold),
            _encode(batch.now),
            b'"allow"',
            b'"alert"',
            b"null",
            *_SELECTIONS,
            *(self._versions(batch.models, version) for version in rates),
            *(_hit_members(*batch.models.evaluated_rules.named(numbers), listed) for numbers, listed in named),
        ]

    def _versions(self, models: ActiveModels, rates: bytes) -> bytes:
        if models is not self._models:
            self._models, self._encoded = models, {}
        if rates not in self._encoded:
            self._encoded[rates] = _encode(models.versions(rates.decode()))
        return self._encoded[rates]


def _hit_members(active: list[str], shadow: list[str], listed: Listed) -> bytes:
    """Return the members of a decision that name its hits; nothing where there are none."""
    members: tuple[tuple[bytes, Any], ...] = (
        (b',"rule_hits":', active),
        (b',"shadow_hits":', shadow),
        (b',"list_hits":', listed.names),
        (b',"overruled":', dict(listed.overruled)),
    )
    return b"".join(name + _encode(value) for name, value in members if value)


def _numbers(batch: DecisionBatch, more: int) -> NDArray[np.float64]:
    """Return the numbers of each decision, and room for ``more``."""
    decided = batch.decided
    numbers = np.empty((batch.subjects.rows, _NUMBERS + more))
    numbers[:, _AMOUNT_BASE] = batch.subjects.wholes[col.AMOUNT_BASE] / 100
    numbers[:, _SCORE] = decided.score
    for column in range(len(KINDS)):
        numbers[:, _FIRST_SCORE + column] = sigmoid(decided.logits[:, column])
    for at, (column, _) in enumerate(WITH_LOG_ODDS, _FIRST_LOG_ODDS):
        numbers[:, at] = decided.logits[:, column]
    numbers[:, _PROBABILITY] = decided.selection_probability
    return numbers
