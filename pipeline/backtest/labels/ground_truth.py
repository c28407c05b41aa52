"""Ground truth about decided transactions, and the bounds that unknown labels leave."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

from pipeline.backtest.input.blocks import BLOCK_ROWS, blocks, texts
from pipeline.backtest.input.spill import in_blocks
from pipeline.learning.labels import (
    FRAUD,
    KNOWN,
    LEGITIMATE,
    NO_LABEL,
    NOTHING,
    SOURCE_RANK,
    holding,
    known_value,
    source_rank,
)

NEVER: Final = np.iinfo(np.int64).max
_IDENTITY: Final = ["card_id", "transaction_id"]
_LEGITIMATE, _FRAUD = KNOWN.index(LEGITIMATE), KNOWN.index(FRAUD)


class GroundTruth(NamedTuple):
    """The known labels of n decided transactions; each of shape (n,)."""

    fraud: NDArray[np.bool_]
    legitimate: NDArray[np.bool_]
    """Known to be; what is neither has no label that says anything."""
    source: "pd.Categorical[str]"
    """Source of the label that holds, empty where there is none."""
    fraud_type: "pd.Categorical[str]"
    """Empty where it is not known."""
    known_us: NDArray[np.int64]
    """When the label that holds was known, in microseconds since 1970; `NEVER` where there is none."""

    @property
    def unlabelled(self) -> NDArray[np.bool_]:
        """True where the transaction may be either."""
        return ~(self.fraud | self.legitimate)


def held_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """The label that holds of each transaction: the largest by rank of source, time, severity of what it says.

    ``labels`` has `pipeline.backtest.LABEL_FIELDS`, and maybe ``fraud_type``; what rules say is left out, as
    `pipeline.learning.labels.resolve_numbers` does. Comes with ``rank``, and ``known``, the number of `KNOWN`.
    """
    ranks = _coded(labels["source"], source_rank)
    known = _coded(labels["label"], lambda word: KNOWN.index(known_value(word)))
    kept = np.flatnonzero(ranks != SOURCE_RANK["rule"])
    name: NDArray[np.int32] = _names(labels, slice(None)).take(pa.array(kept)).dictionary_encode().indices.to_numpy()
    rows = kept[holding([name], ranks[kept], microseconds(labels["labelled_at"])[kept], known[kept])]
    held: pd.DataFrame = labels.iloc[rows].assign(rank=ranks[rows], known=known[rows])
    return held


def ground_truth(decisions: pd.DataFrame, labels: pd.DataFrame) -> GroundTruth:
    """Find the labels that hold for the transactions of ``decisions``, in their order.

    Both may be longer than what fits into memory: labels are taken block by block, each of which is looked for among
    all decisions. Memory beyond the answer's is that of a block.
    """
    found = _Found(len(decisions))
    for block in blocks(len(labels), LABEL_BLOCK_ROWS):
        held = held_labels(labels.iloc[block])
        if len(held):
            found.take(decisions, held)
    return found.truth()


LABEL_BLOCK_ROWS: Final = 2 * BLOCK_ROWS


class _Found:
    """For each of n decisions the largest label that was found so far."""

    def __init__(self, n: int) -> None:
        self._rank, self._known = _filled(n, NO_LABEL, np.int8), _filled(n, KNOWN.index(NOTHING), np.int8)
        self._at_us = _filled(n, -NEVER, np.int64)
        self._source, self._fraud_type = _Words(n), _Words(n)

    def take(self, decisions: pd.DataFrame, held: pd.DataFrame) -> None:
        """Look for the labels that hold of their block."""
        names = _names(held, slice(None))
        rank, known = held["rank"].to_numpy(np.int8), held["known"].to_numpy(np.int8)
        at_us = microseconds(held["labelled_at"])
        source = self._source.coded(held["source"])
        fraud_type = (
            self._fraud_type.coded(held["fraud_type"]) if "fraud_type" in held else np.zeros(len(held), np.int32)
        )
        for block in blocks(len(decisions)):
            positions = pc.index_in(_names(decisions, block), value_set=names)
            rows = np.flatnonzero(positions.is_valid().to_numpy(zero_copy_only=False))
            numbers = positions.drop_null().to_numpy()
            rows += block.start
            before = (self._rank[rows], self._at_us[rows], self._known[rows])
            # Of equal ones the last that came.
            holds = ~_less((rank[numbers], at_us[numbers], known[numbers]), before)
            rows, numbers = rows[holds], numbers[holds]
            self._rank[rows], self._at_us[rows], self._known[rows] = rank[numbers], at_us[numbers], known[numbers]
            self._source.codes[rows], self._fraud_type.codes[rows] = source[numbers], fraud_type[numbers]

    def truth(self) -> GroundTruth:
        """Return the known labels."""
        nothing = self._known == KNOWN.index(NOTHING)
        self._source.codes[nothing] = 0
        self._fraud_type.codes[self._known != _FRAUD] = 0
        self._at_us[nothing] = NEVER
        return GroundTruth(
            fraud=self._known == _FRAUD,
            legitimate=self._known == _LEGITIMATE,
            source=self._source.categories(),
            fraud_type=self._fraud_type.categories(),
            known_us=self._at_us,
        )


class _Words:
    """A word for each of n rows, at first the empty one."""

    def __init__(self, n: int) -> None:
        self.codes = _filled(n, 0, np.int16)
        self._words = {"": 0}

    def coded(self, words: "pd.Series[str]") -> NDArray[np.int32]:
        """Numbers of some words; the empty one's where there is none."""
        codes, distinct = pd.factorize(words.astype(object))
        known = [self._words.setdefault(str(word), len(self._words)) for word in distinct]
        return np.array([*known, 0], np.int32)[codes]

    def categories(self) -> "pd.Categorical[str]":
        return pd.Categorical.from_codes(self.codes, categories=pd.Index(list(self._words)))


def microseconds(times: pd.Series) -> NDArray[np.int64]:
    """Microseconds since 1970."""
    at = pd.to_datetime(times, utc=True)
    return at.dt.tz_convert(None).to_numpy("datetime64[us]").astype(np.int64)


def _filled(n: int, value: int, dtype: DTypeLike) -> NDArray[Any]:
    """A column on disk that may be written to."""
    return in_blocks(n, dtype, lambda rows: np.full(rows.stop - rows.start, value, dtype))


def _names(frame: pd.DataFrame, rows: slice) -> pa.Array:
    """Join both names of each transaction; a length tells where the second begins, whatever they hold."""
    cards, ids = (texts(frame[name], rows) for name in _IDENTITY)
    parts = (pc.utf8_length(cards).cast(cards.type), cards, ids)
    return pc.binary_join_element_wise(*parts, pa.scalar(" ", cards.type))


def _less(first: Sequence[NDArray[Any]], second: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Return True where ``first`` comes before ``second``, by the first column in which they differ; of shape (n,)."""
    less = np.zeros(len(first[0]), np.bool_)
    same = np.ones(len(first[0]), np.bool_)
    for left, right in zip(first, second, strict=True):
        less |= same & (left < right)
        same &= left == right
    return less


def answered_us(decisions: pd.DataFrame, answers: pd.DataFrame) -> NDArray[np.int64]:
    """When reviews (`pipeline.backtest.labels.schedule.ReviewOutcome`) answered ``decisions``; `NEVER` where none did.

    Memory beyond the answer's is that of ``answers``, and of a block of decisions.
    """
    names, at_us = _names(answers, slice(None)), microseconds(answers["known_at"])
    # Of several answers the first one is found.
    order = np.argsort(at_us, kind="stable")
    names, at_us = names.take(pa.array(order)), np.r_[at_us[order], NEVER]

    def first(rows: slice) -> NDArray[np.int64]:
        at = pc.index_in(_names(decisions, rows), value_set=names)
        return np.asarray(at_us[pc.fill_null(at, len(names)).to_numpy()])

    return in_blocks(len(decisions), np.int64, first)


class Bounds(NamedTuple):
    """A figure where every unlabelled transaction is taken as the one or the other; None where it has no meaning."""

    as_legitimate: float | None
    as_fraud: float | None
    least: float | None
    """Lower bound, however the unlabelled turn out."""
    most: float | None


def precision_bounds(truth: GroundTruth, alert: NDArray[np.bool_]) -> Bounds:
    """Bound the alerts' precision by what reviews of the unlabelled alerts could make of it."""
    alerts, found = int(alert.sum()), int((truth.fraud & alert).sum())
    open_ = int((truth.unlabelled & alert).sum())
    least, most = _share(found, alerts), _share(found + open_, alerts)
    return Bounds(least, most, least, most)


def recall_bounds(truth: GroundTruth, alert: NDArray[np.bool_]) -> Bounds:
    """Bound the alerts' recall. It is least where of the unlabelled only what was passed over is fraud, most where only
    what was alerted is."""
    frauds, found = int(truth.fraud.sum()), int((truth.fraud & alert).sum())
    alerted, passed = int((truth.unlabelled & alert).sum()), int((truth.unlabelled & ~alert).sum())
    return Bounds(
        _share(found, frauds),
        _share(found + alerted, frauds + alerted + passed),
        _share(found, frauds + passed),
        _share(found + alerted, frauds + alerted),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _coded(texts: "pd.Series[str]", code: Callable[[str], int]) -> NDArray[np.int64]:
    codes, words = pd.factorize(texts.astype(object))
    return np.array([code(word) for word in words], np.int64)[codes]
