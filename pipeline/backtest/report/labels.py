"""Known labels of the range, their sources, and what they leave open."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.spill import NumberColumn, blocks
from pipeline.backtest.labels.schedule import LabelMode
from pipeline.backtest.report.content import LabelContent, SourceCount
from pipeline.backtest.report.observed import Shared
from pipeline.backtest.runner.result import BacktestResult
from pipeline.learning.label_sources import SIMULATOR
from pipeline.learning.regimes import NEVER_US
from schemas.times import US_PER_DAY

_MODES: Final = {
    LabelMode.RECORDED: "Labels are those that were recorded, each shown from when it was known.",
    LabelMode.DELAY: "Labels are what the history says in the end, known after a delay; nobody has to find a fraud "
    "for it to be known.",
    LabelMode.REVIEW: "Labels are simulated: the best alerts of a variant's day are reviewed, and answered by what the "
    "history says in the end; the rest becomes known after the delay. Each variant learns by labels of its own.",
}
OF_FILE: Final = "the history's own"
"""Source of labels that are the truth of a file."""


def label_content(result: BacktestResult, shared: Shared) -> LabelContent:
    """Counts, sources, and what they mean in sentences."""
    truth = shared.truth
    known = truth.known_us != NEVER_US
    frauds, legitimate, unlabelled = (int(rows.sum()) for rows in (truth.fraud, truth.legitimate, truth.unlabelled))
    mode = LabelMode(result.label_mode)
    share = (frauds + legitimate) / len(known) if len(known) else None
    median = _median_days(shared, known) if known.any() else None
    return LabelContent(
        mode=result.label_mode,
        frauds=frauds,
        legitimate=legitimate,
        unlabelled=unlabelled,
        labelled_share=share,
        sources=[
            SourceCount(
                # A file's own truth has no source; simulated labels stand for it.
                source=OF_FILE if source == SIMULATOR and mode is not LabelMode.RECORDED else source,
                frauds=int((truth.fraud & rows).sum()),
                legitimate=int((truth.legitimate & rows).sum()),
                median_delay_days=_median_days(shared, rows),
            )
            for source in sorted(truth.source[known].unique().tolist())
            for rows in [np.asarray(truth.source == source)]
        ],
        median_delay_days=median,
        statements=_statements(result, frauds, legitimate, unlabelled, median),
    )


def _statements(
    result: BacktestResult, frauds: int, legitimate: int, unlabelled: int, median_days: float | None
) -> list[str]:
    mode = LabelMode(result.label_mode)
    statements = [_MODES[mode]]
    rows = frauds + legitimate + unlabelled
    if rows:
        text = (
            f"{frauds + legitimate:,} of {rows:,} transactions ({(frauds + legitimate) / rows:.1%}) have a label that "
            "says something."
        )
        others = (
            f" The other {unlabelled:,} count as legitimate in every figure but the bounds, since most legitimate "
            "transactions never get a label."
        )
        statements.append(text + others if unlabelled else text)
    if not frauds:
        statements.append("No fraud is known in the range: nothing can be said of recall, ranking or money.")
    if unlabelled and mode is not LabelMode.RECORDED:
        statements.append(
            "What nobody ever labelled stays unknown after the delay too, and a review of it has no answer."
        )
    if unlabelled:
        statements.append(
            "A fraud that nobody reported and no alert found is not among the frauds: recall is that of known frauds. "
            "Who was reviewed was chosen by the alerts of then, so that other alerts, which nobody looked at, seem to "
            "be wrong; only an audit sample, drawn whatever the score, is free of this."
        )
    if median_days is not None and mode is not LabelMode.REVIEW:
        more = "; of the range's last days more frauds may still become known" if mode is LabelMode.RECORDED else ""
        statements.append(f"Half of the labels were known within {median_days:.1f} days{more}.")
    return statements


def _median_days(shared: Shared, chosen: NDArray[np.bool_]) -> float:
    """Return the median delay from transactions to the labels that hold; at least one is ``chosen`` (n,)."""
    delays_us = NumberColumn(np.int64)
    for rows in blocks(len(chosen)):
        delays_us.add((shared.truth.known_us[rows] - shared.event_time_us[rows])[chosen[rows]])
    return float(np.median(delays_us.finish(scratch=True), overwrite_input=True) / US_PER_DAY)
