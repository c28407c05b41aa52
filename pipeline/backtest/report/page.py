"""The report as one HTML page, from the template ``page.html.jinja``."""

from pipeline.backtest.report import plots, wording
from pipeline.backtest.report.content import Metric, ReportContent, VariantContent
from pipeline.observability.templates import template


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
