"""Frames of a report for a notebook. Intervals are NaN where there is none."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pandas as pd

from pipeline.backtest.metrics.bootstrap import ConfidenceInterval
from pipeline.backtest.report.content import Metric, ReportContent, Slice, TypeRecall
from pipeline.backtest.report.wording import wider


def metrics_frame(content: ReportContent) -> pd.DataFrame:
    """A row for each variant and metric: ``value``, and intervals by days and by cards."""
    return pd.DataFrame(
        [
            {
                "variant": variant.name,
                "metric": metric.name,
                "value": metric.value,
                **_ends("days", metric.by_days),
                **_ends("cards", metric.by_cards),
            }
            for variant in content.variants
            for metric in variant.metrics
        ]
    )


def days_frame(content: ReportContent) -> pd.DataFrame:
    """A row for each variant and day: counts, and each metric with the ends of its interval."""
    found = _frame((variant.name, variant.days) for variant in content.variants)
    return found.assign(name=pd.to_datetime(found["name"], utc=True)).rename(columns={"name": "day"})


def amounts_frame(content: ReportContent) -> pd.DataFrame:
    """A row for each variant and band of amounts, likewise; of two intervals the wider one."""
    return _frame((variant.name, variant.amounts) for variant in content.variants).rename(columns={"name": "amount"})


def fraud_types_frame(content: ReportContent) -> pd.DataFrame:
    """A row for each variant and type of fraud, likewise."""
    return _frame((variant.name, variant.fraud_types) for variant in content.variants)


def _frame(parts: Iterable[tuple[str, Sequence[Slice | TypeRecall]]]) -> pd.DataFrame:
    return pd.DataFrame([{"variant": name, **_columns(part)} for name, slices in parts for part in slices])


def _columns(part: Slice | TypeRecall) -> dict[str, Any]:
    columns = msgspec.structs.asdict(part)
    metrics: list[Metric] = columns.pop("metrics")
    for metric in metrics:
        columns |= {metric.name: metric.value, **_ends(metric.name, wider(metric))}
    return columns


def _ends(name: str, interval: ConfidenceInterval | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}
