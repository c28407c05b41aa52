"""Figures of parts of the range, such as days, bands of amounts and types of fraud, and confidence in them."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.spill import blocks, in_blocks
from pipeline.backtest.report.content import ReportOptions, Slice, SliceDifference, TypeRecall
from pipeline.backtest.report.figures import Resamples, Statistics, differences, drawn, metrics
from pipeline.backtest.report.observed import Observed, Shared

SLICED: Final = ("alert_precision", "alert_recall", "precision_at_k", "recall_at_k", "caught_amount", "missed_amount")
"""Figures of a slice, in their order."""
OUTSIDE: Final = -1
"""The slice of transactions that belong to none."""
AMOUNT_EDGES: Final = (10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0)
"""Between bands of amounts, in the base currency's major unit."""


class Slicing(NamedTuple):
    """The range in slices."""

    names: list[str]
    numbers: NDArray[np.int64]
    """The slice of each transaction; shape (n,)."""


def days(shared: Shared) -> Slicing:
    """Each day (UTC) of the range, those without a transaction too."""
    first = date(1970, 1, 1) + timedelta(days=int(shared.first_day))
    return Slicing([(first + timedelta(days=number)).isoformat() for number in range(shared.days)], shared.day)


def bands(shared: Shared) -> Slicing:
    """Bands of amounts that have transactions."""
    names = [f"{low:,.0f} to {high:,.0f}" for low, high in zip((0.0, *AMOUNT_EDGES), AMOUNT_EDGES, strict=False)]
    names.append(f"{AMOUNT_EDGES[-1]:,.0f} and more")
    amount = shared.amount
    band = in_blocks(len(amount), np.int64, lambda rows: np.searchsorted(AMOUNT_EDGES, amount[rows], side="right"))
    present = np.flatnonzero(np.bincount(band, minlength=len(names)))
    cut = in_blocks(len(band), np.int64, lambda rows: np.searchsorted(present, band[rows]))
    return Slicing([names[number] for number in present.tolist()], cut)


def kinds(shared: Shared) -> Slicing:
    """Types of fraud; none where no type is known. What is no known fraud belongs to no slice."""
    truth = shared.truth
    names = sorted(truth.fraud_type[truth.fraud].unique().tolist())
    if names == [""]:
        names = []
    slice_of = {name: number for number, name in enumerate(names)}
    number = np.array([slice_of.get(name, OUTSIDE) for name in truth.fraud_type.categories], np.int64)
    fraud, codes = truth.fraud, truth.fraud_type.codes
    kind = in_blocks(len(fraud), np.int64, lambda rows: np.where(fraud[rows], number[codes[rows]], OUTSIDE))
    return Slicing([name or "not known" for name in names], kind)


def slices(
    shared: Shared, observed: Observed, cut: Slicing, figures: list[Resamples], options: ReportOptions
) -> list[Slice]:
    """A slice after the other, with counts and figures.

    Args:
        shared: Transactions of all variants.
        observed: Decisions of one variant.
        cut: Slices; every transaction belongs to one.
        figures: Figures of each slice, in the order of ``cut``; columns as `SLICED`.
        options: Give the level of the confidence intervals.
    """
    fraud, alert, unlabelled = shared.truth.fraud, observed.alert, shared.truth.unlabelled
    everything = np.ones(len(cut.numbers), np.bool_)
    chosen = (everything, ~unlabelled, alert, alert & unlabelled, observed.best, fraud, alert & fraud)
    counts = [_counted(cut, rows).tolist() for rows in chosen]
    amounts = np.bincount(cut.numbers[fraud], weights=shared.amount[fraud], minlength=len(cut.names)).tolist()
    return [
        Slice(
            name=name,
            transactions=rows,
            labelled=labelled,
            alerts=alerts,
            unlabelled_alerts=unknown,
            best=best,
            frauds=frauds,
            alerted_frauds=found,
            fraud_amount=amount,
            metrics=metrics(resamples, options, SLICED),
        )
        for name, rows, labelled, alerts, unknown, best, frauds, found, amount, resamples in zip(
            cut.names, *counts, amounts, figures, strict=True
        )
    ]


def _counted(cut: Slicing, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the ``chosen`` rows of each slice; shape (slices,)."""
    counts = np.zeros(len(cut.names), np.int64)
    for rows in blocks(len(chosen)):
        counts += np.bincount(cut.numbers[rows][chosen[rows]], minlength=len(cut.names))
    return counts


def fraud_types(shared: Shared, cut: Slicing, figures: list[Resamples], options: ReportOptions) -> list[TypeRecall]:
    """Recall and money by type of fraud, of alerts and of the best of each day.

    Args:
        shared: Transactions of all variants.
        cut: Slices by type, as `kinds` returns them; without any, nothing is returned.
        figures: Figures of each slice, in the order of ``cut``; columns as `SLICED`.
        options: Give the level of the confidence intervals.
    """
    return [
        TypeRecall(
            fraud_type=name,
            frauds=int(np.count_nonzero(cut.numbers == number)),
            amount=float(shared.amount[cut.numbers == number].sum()),
            metrics=[metric for metric in metrics(resamples, options, SLICED) if "precision" not in metric.name],
        )
        for number, (name, resamples) in enumerate(zip(cut.names, figures, strict=True))
    ]


def slice_differences(
    cut: Slicing, base: list[Resamples], other: list[Resamples], options: ReportOptions
) -> list[SliceDifference]:
    """The other's figures less the base's, slice by slice."""
    return [
        SliceDifference(name=name, metrics=differences(first, second, options, SLICED))
        for name, first, second in zip(cut.names, base, other, strict=True)
    ]


def resample_slices(
    shared: Shared, variants: Sequence[Observed], cut: Slicing, options: ReportOptions, *, by_days: bool = True
) -> list[list[Resamples]]:
    """Return each variant's figures of each slice, columns as `SLICED`.

    Resamples are those of the whole range, the same for all variants, so that differences can be told from chance.
    What stands among the best of its day stays so in all of them: a day's cut is taken as given. Without ``by_days``
    whole days are not resampled, which says nothing of slices that are days themselves.
    """
    slices = len(cut.names)
    if not slices:
        return [[] for _ in variants]
    by_day = [_sums(cut, shared, observed, shared.day) for observed in variants]
    by_card = [_sums(cut, shared, observed, shared.card) for observed in variants]
    values = np.array([_figures(weighted(np.ones(shared.days)).reshape(slices, _SUMS)) for weighted in by_day])
    days_drawn = _figures(drawn(by_day, shared.days if by_days else 0, options, slices, _SUMS))
    cards_drawn = _figures(drawn(by_card, shared.cards, options, slices, _SUMS))
    return [
        [Resamples(values[at, row], days_drawn[:, at, row], cards_drawn[:, at, row]) for row in range(slices)]
        for at in range(len(variants))
    ]


_ALERTS, _ALERTED_FRAUDS, _FRAUDS, _BEST, _BEST_FRAUDS, _CAUGHT, _AMOUNT, _SUMS = range(8)


def _sums(cut: Slicing, shared: Shared, observed: Observed, unit: NDArray[np.int64]) -> Statistics:
    """The parts of all slices' figures, one slice behind the other, by units' weights; shape (slices * _SUMS,).

    They are held of those pairs of slice and unit that have an alert, a fraud or a best.
    """
    fraud, amount = shared.truth.fraud, shared.amount
    rows = np.flatnonzero((observed.alert | observed.best | fraud) & (cut.numbers != OUTSIDE))
    fraud, alert, best = fraud[rows], observed.alert[rows], observed.best[rows]
    columns = (
        alert, alert & fraud, fraud, best, best & fraud, observed.caught[rows] * amount[rows], fraud * amount[rows],
    )  # fmt: skip
    pairs, number = np.unique(np.column_stack([cut.numbers[rows], unit[rows]]), axis=0, return_inverse=True)
    number = number.reshape(-1)
    sums = np.column_stack([np.bincount(number, weights=column, minlength=len(pairs)) for column in columns]).ravel()
    cell = (pairs[:, :1] * _SUMS + np.arange(_SUMS)).ravel()

    def weighted(weight: NDArray[np.float64]) -> NDArray[np.float64]:
        weights = np.repeat(weight[pairs[:, 1]], _SUMS) * sums
        return np.bincount(cell, weights=weights, minlength=len(cut.names) * _SUMS).astype(np.float64)

    return weighted


def _figures(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute figures, shape (..., len(SLICED)), from sums, shape (..., _SUMS); NaN for those without a meaning."""
    parts = {
        "alert_precision": _ratio(sums[..., _ALERTED_FRAUDS], sums[..., _ALERTS]),
        "alert_recall": _ratio(sums[..., _ALERTED_FRAUDS], sums[..., _FRAUDS]),
        "precision_at_k": _ratio(sums[..., _BEST_FRAUDS], sums[..., _BEST]),
        "recall_at_k": _ratio(sums[..., _BEST_FRAUDS], sums[..., _FRAUDS]),
        "caught_amount": sums[..., _CAUGHT],
        "missed_amount": sums[..., _AMOUNT] - sums[..., _CAUGHT],
    }
    return np.stack([parts[name] for name in SLICED], axis=-1)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio
