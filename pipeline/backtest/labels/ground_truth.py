"""Ground truth about decided transactions, and the bounds that unknown labels leave."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backtest.input.spill import in_blocks
from pipeline.backtest.labels.final_labels import FinalLabels, digests_of, microseconds
from pipeline.learning.labels import KNOWN_FRAUD, KNOWN_LEGITIMATE, KNOWN_NOTHING
from pipeline.learning.regimes import NEVER_US


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
    """When the label that holds was known, in microseconds since 1970; `NEVER_US` where there is none."""

    @property
    def unlabelled(self) -> NDArray[np.bool_]:
        """True where the transaction may be either."""
        return ~(self.fraud | self.legitimate)


def ground_truth(decisions: pd.DataFrame, labels: pd.DataFrame) -> GroundTruth:
    """Find the labels that hold for the transactions of ``decisions``, in their order.

    Both may be longer than what fits into memory: memory is that of a block.

    Args:
        decisions: n rows with ``card_id`` and ``transaction_id``.
        labels: Rows of `pipeline.backtest.LABEL_FIELDS`, and maybe ``fraud_type``; what rules say is left out.
    """
    final, n = FinalLabels(labels), len(decisions)
    at = in_blocks(n, np.int64, lambda rows: final.find(digests_of(decisions, rows)))
    known = in_blocks(n, np.int8, lambda rows: final.column("known", at[rows], KNOWN_NOTHING))
    fraud = known == KNOWN_FRAUD
    sources, kinds = (list(dict.fromkeys(["", *words.to_pylist()])) for words in final.words.values())

    def codes(name: str, words: list[str]) -> NDArray[np.int16]:
        # Behind them, at -1, that of no word.
        numbers = np.array([*map(words.index, final.words[name].to_pylist()), 0], np.int16)
        return in_blocks(n, np.int16, lambda rows: numbers[final.column(name, at[rows], -1)])

    return GroundTruth(
        fraud=fraud,
        legitimate=known == KNOWN_LEGITIMATE,
        source=pd.Categorical.from_codes(codes("source", sources), categories=pd.Index(sources)),
        fraud_type=pd.Categorical.from_codes(
            np.where(fraud, codes("fraud_type", kinds), 0), categories=pd.Index(kinds)
        ),
        known_us=in_blocks(n, np.int64, lambda rows: final.column("at_us", at[rows], NEVER_US)),
    )


def answered_us(decisions: pd.DataFrame, answers: pd.DataFrame) -> NDArray[np.int64]:
    """When reviews (`pipeline.backtest.labels.schedule.ReviewOutcome`) answered ``decisions``; `NEVER_US`: none did.

    Memory beyond the answer's is that of ``answers``, and of a block of decisions.
    """
    high, at_us = digests_of(answers, slice(None))[:, 0], microseconds(answers["known_at"])
    # Of several answers the first one is found.
    order = np.lexsort((at_us, high))
    high, at_us = high[order], np.r_[at_us[order], NEVER_US]

    def first(rows: slice) -> NDArray[np.int64]:
        wanted = digests_of(decisions, rows)[:, 0]
        at = np.searchsorted(high, wanted)
        return np.where(np.r_[high, 0][at] == wanted, at_us[at], NEVER_US)

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
