"""The report of a backtest: one content, read as a page, as JSON and as a summary for the terminal."""

from dataclasses import dataclass
from functools import cached_property

import msgspec
import pandas as pd

from pipeline.backtest.report import plots, wording
from pipeline.backtest.report.content import Metric, ReportContent, ReportOptions, VariantContent
from pipeline.backtest.report.evaluate import evaluate
from pipeline.backtest.report.frames import amounts_frame, days_frame, fraud_types_frame, metrics_frame
from pipeline.backtest.report.summary import summary
from pipeline.backtest.runner.result import BacktestResult
from pipeline.observability.templates import template

__all__ = ["BacktestReport", "ReportContent", "ReportOptions", "build_report"]


@dataclass(frozen=True)
class BacktestReport:
    """Readings of one content."""

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
        """A row for each variant and metric, with both of its intervals."""
        return metrics_frame(self.content)

    @property
    def by_day(self) -> pd.DataFrame:
        """A row for each variant and day: counts, precision and recall, money caught and missed, intervals."""
        return days_frame(self.content)

    @property
    def by_amount(self) -> pd.DataFrame:
        """The same of bands of amounts."""
        return amounts_frame(self.content)

    @property
    def by_fraud_type(self) -> pd.DataFrame:
        """Recall and money by type of fraud; empty where no type is known."""
        return fraud_types_frame(self.content)


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
        *(wording.drift_sentence, metric),
    )
    found = template(__package__, "page.html.jinja", filters)
    return found.render(content=wording.with_raised(content), plots=plots, stable=wording.STABLE, moved=wording.MOVED)


def metric(variant: VariantContent, name: str) -> Metric:
    """Return a metric of a variant by its name."""
    return next(metric for metric in variant.metrics if metric.name == name)
