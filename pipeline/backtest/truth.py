"""What the labels say about decided transactions, and what they cannot say."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backtest.resolved import KNOWN
from pipeline.learning.labels import FRAUD, LEGITIMATE, NOTHING, SOURCE_RANK, known_value, source_rank

NEVER: Final = np.iinfo(np.int64).max
_IDENTITY: Final = ["card_id", "transaction_id"]
_LEGITIMATE, _FRAUD = KNOWN.index(LEGITIMATE), KNOWN.index(FRAUD)


class Truth(NamedTuple):
    """What is known about n decided transactions; each of shape (n,)."""

    fraud: NDArray[np.bool_]
    legitimate: NDArray[np.bool_]
    """Known to be; what is neither has no label that says anything."""
    source: NDArray[np.object_]
    """Of the label that holds, empty where there is none."""
    fraud_type: NDArray[np.object_]
    """Empty where it is not told."""
    known_us: NDArray[np.int64]
    """When the label that holds was known, in microseconds since 1970; `NEVER` where there is none."""

    @property
    def unlabelled(self) -> NDArray[np.bool_]:
        """Which may be either."""
        return ~(self.fraud | self.legitimate)


def held_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """The label that holds of each transaction: the largest by rank of source, time, severity of what it says.

    ``labels`` has `pipeline.backtest.LABEL_FIELDS`, and maybe ``fraud_type``; what rules say is left out, as
    `pipeline.learning.labels.resolve` does. Comes with ``known``, the number of `KNOWN`.
    """
    ranks = _coded(labels["source"], source_rank)
    known = _coded(labels["label"], lambda word: KNOWN.index(known_value(word)))
    kept = labels.assign(rank=ranks, known=known).loc[ranks != SOURCE_RANK["rule"]]
    ordered = kept.sort_values(["rank", "labelled_at", "known"], kind="stable")
    held: pd.DataFrame = ordered.drop_duplicates(_IDENTITY, keep="last").drop(columns="rank")
    return held


def find_truth(decisions: pd.DataFrame, labels: pd.DataFrame) -> Truth:
    """What ``labels`` say about the transactions of ``decisions``, in their order."""
    held = held_labels(labels)
    wanted = ["source", "known", "labelled_at", *(["fraud_type"] if "fraud_type" in held else [])]
    texts = dict.fromkeys(_IDENTITY, object)
    joined = decisions[_IDENTITY].astype(texts).merge(held[[*_IDENTITY, *wanted]].astype(texts), "left", _IDENTITY)
    known = joined["known"].fillna(KNOWN.index(NOTHING)).to_numpy(np.int64)
    said = known != KNOWN.index(NOTHING)
    at_us = _us(joined["labelled_at"])
    types = joined["fraud_type"] if "fraud_type" in joined else pd.Series([""] * len(joined), dtype=object)
    return Truth(
        fraud=known == _FRAUD,
        legitimate=known == _LEGITIMATE,
        source=np.where(said, joined["source"].astype(object).fillna("").to_numpy(object), ""),
        fraud_type=np.where(known == _FRAUD, types.astype(object).fillna("").to_numpy(object), ""),
        known_us=np.where(said, at_us, NEVER),
    )


def answered_us(decisions: pd.DataFrame, answers: pd.DataFrame) -> NDArray[np.int64]:
    """When reviews (`pipeline.backtest.labelling.Reviewed`) answered ``decisions``; `NEVER` where none did."""
    texts = dict.fromkeys(_IDENTITY, object)
    first = answers.astype(texts).groupby(_IDENTITY, sort=False)["known_at"].min().reset_index()
    joined = decisions[_IDENTITY].astype(texts).merge(first, "left", _IDENTITY)
    at_us = _us(joined["known_at"])
    return np.where(joined["known_at"].isna(), NEVER, at_us)


class Bounds(NamedTuple):
    """A figure where every unlabelled transaction is taken as the one or the other; None where it has no meaning."""

    as_legitimate: float | None
    as_fraud: float | None
    least: float | None
    """What it is at least, however the unlabelled turn out."""
    most: float | None


def precision_bounds(truth: Truth, alert: NDArray[np.bool_]) -> Bounds:
    """Of the alerts' precision: what reviews of the unlabelled alerts could make of it."""
    alerts, found = int(alert.sum()), int((truth.fraud & alert).sum())
    open_ = int((truth.unlabelled & alert).sum())
    least, most = _share(found, alerts), _share(found + open_, alerts)
    return Bounds(least, most, least, most)


def recall_bounds(truth: Truth, alert: NDArray[np.bool_]) -> Bounds:
    """Of the alerts' recall. It is least where of the unlabelled only what was passed over is fraud, most where only
    what was alerted is."""
    frauds, found = int(truth.fraud.sum()), int((truth.fraud & alert).sum())
    alerted, passed = int((truth.unlabelled & alert).sum()), int((truth.unlabelled & ~alert).sum())
    return Bounds(
        _share(found, frauds),
        _share(found + alerted, frauds + alerted + passed),
        _share(found, frauds + passed),
        _share(found + alerted, frauds + alerted),
    )


def _us(times: pd.Series) -> NDArray[np.int64]:
    """Microseconds since 1970; of what is no time, any number."""
    at = pd.to_datetime(times, utc=True).dt.tz_convert(None)
    return np.asarray(at.to_numpy("datetime64[us]").astype(np.int64))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _coded(texts: "pd.Series[str]", of: Callable[[str], int]) -> NDArray[np.int64]:
    codes, words = pd.factorize(texts.astype(object))
    return np.array([of(word) for word in words], np.int64)[codes]
