"""The report of a backtest: one content, read as a page, as JSON and as a summary for the terminal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import pandas as pd

from pipeline.backtest.metrics.bootstrap import ConfidenceInterval
from pipeline.backtest.report import plots, wording
from pipeline.backtest.report.content import Metric, ReportContent, ReportOptions, Slice, TypeRecall, VariantContent
from pipeline.backtest.report.evaluate import evaluate
from pipeline.backtest.report.summary import summary
from pipeline.backtest.runner.result import BacktestResult
from pipeline.observability.templates import template

__all__ = ["BacktestReport", "ReportContent", "ReportOptions", "build_report"]


@dataclass(frozen=True)
class BacktestReport:
    """Readings of one content. In its frames, intervals are NaN where there is none."""

    content: ReportContent

    @cached_property
    def html(self) -> str:
        """A page that opens without a network."""
        return page(self.content)

    @cached_property
    def json(self) -> str:
        """`ReportContent` as JSON, indented."""
        return msgspec.json.format(msgspec.json.encode(self.content)).decode()

    @cached_property
    def text(self) -> str:
        """A summary of at most 80 columns."""
        return summary(self.content)

    @property
    def metrics(self) -> pd.DataFrame:
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
                for variant in self.content.variants
                for metric in variant.metrics
            ]
        )

    @property
    def by_day(self) -> pd.DataFrame:
        """A row for each variant and day: counts, and each metric with the ends of its interval."""
        found = _frame((variant.name, variant.days) for variant in self.content.variants)
        return found.assign(name=pd.to_datetime(found["name"], utc=True)).rename(columns={"name": "day"})

    @property
    def by_amount(self) -> pd.DataFrame:
        """The same of bands of amounts; of two intervals the wider one."""
        return _frame((variant.name, variant.amounts) for variant in self.content.variants).rename(
            columns={"name": "amount"}
        )

    @property
    def by_fraud_type(self) -> pd.DataFrame:
        """Recall and money by type of fraud, likewise; empty where no type is known."""
        return _frame((variant.name, variant.fraud_types) for variant in self.content.variants)


def _frame(parts: Iterable[tuple[str, Sequence[Slice | TypeRecall]]]) -> pd.DataFrame:
    return pd.DataFrame([{"variant": name, **_columns(part)} for name, slices in parts for part in slices])


def _columns(part: Slice | TypeRecall) -> dict[str, Any]:
    columns = msgspec.structs.asdict(part)
    metrics: list[Metric] = columns.pop("metrics")
    for metric in metrics:
        columns |= {metric.name: metric.value, **_ends(metric.name, wording.wider(metric))}
    return columns


def _ends(name: str, interval: ConfidenceInterval | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}


def build_report(result: BacktestResult, options: ReportOptions | None = None) -> BacktestReport:
    """Build the report of a backtest; nothing is written.

    Args:
        result: Decisions and labels, as `pipeline.Backtest.run` returns them.
        options: Assumptions of the report, and how much it shows. Default: those of `ReportOptions`.

    Raises:
        ValueError: Variants did not decide about the same transactions, or decisions lie outside of the range.
    """
    return BacktestReport(evaluate(result, ReportOptions() if options is None else options))


def page(content: ReportContent) -> str:
    """Return the whole page. Whatever stands in ``content`` is text on it, never markup."""
    filters = (
        *(wording.number, wording.ratio, wording.percent, wording.moment, wording.score, wording.figure),
        *(wording.between, wording.wider, wording.headline, wording.pacing_sentence, wording.partial_sentence),
        *(wording.drift_sentence, wording.idle_rules_sentence, metric),
    )
    found = template(__package__, "page.html.jinja", filters)
    return found.render(content=wording.with_raised(content), plots=plots, stable=wording.STABLE, moved=wording.MOVED)


def metric(variant: VariantContent, name: str) -> Metric:
    """Return a metric of a variant by its name."""
    return next(metric for metric in variant.metrics if metric.name == name)
