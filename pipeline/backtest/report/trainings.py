"""The versions that a backtest trained, as content and as a section of the page."""

from pipeline.backtest.report.content import ReportContent, VariantContent, VersionContent
from pipeline.backtest.report.markup import Markup, element, join, table
from pipeline.backtest.report.tables import time_text
from pipeline.backtest.report.wording import NONE, moment, number, ratio
from pipeline.backtest.runner.result import Parameter, Variant

_COLUMNS = (
    "Known at", "Version", "First decision", "Decisions", "Rows", "Frauds", "Trees", "Average precision", "Precision",
    "Recall", "Threshold", "Seconds",
)  # fmt: skip


def version_contents(variant: Variant) -> list[VersionContent]:
    """Return the trainings of a variant."""
    return [
        VersionContent(
            known_time=time_text(trained.known_us),
            lightgbm=trained.lightgbm,
            policy=trained.policy,
            refused=trained.refused,
            first_decision=None if trained.first_decision_us is None else time_text(trained.first_decision_us),
            decisions=trained.decisions,
            rows=trained.rows,
            frauds=trained.frauds,
            metrics=dict(trained.metrics),
            seconds=trained.seconds,
        )
        for trained in variant.versions
    ]


def trainings(content: ReportContent) -> Markup:
    """The versions of all variants that were trained."""
    parts: list[Markup] = []
    for variant in content.variants:
        if variant.versions:
            rows = [_row(version) for version in variant.versions]
            parts.append(table(f"Versions of {variant.name}", _COLUMNS, rows, texts=2))
            parts += [
                element("p", f"Refused, by what was known at {moment(version.known_time)}: {version.refused}.")
                for version in variant.versions
                if version.refused
            ]
    parts.append(
        element(
            "p",
            "A version is trained on rows with frauds among them, by what was known at a time, and decides from its "
            "first decision until the next version does. Average precision, precision and recall are those of its own "
            "validation period, and flatter: the number of trees, the calibration and the threshold were chosen on it.",
        )
    )
    return join(parts)


def sentence(variant: VariantContent) -> str:
    """Return how often a variant was trained, and how long that took; nothing for one that was trained once."""
    made = [version for version in variant.versions if version.lightgbm is not None]
    if len(variant.versions) < 2:
        return ""
    return (
        f"{variant.name}: {len(made)} versions, by what was known from {moment(made[0].known_time)} to "
        f"{moment(made[-1].known_time)}; the trainings took {number(sum(version.seconds for version in made), 1)} s."
    )


def _row(version: VersionContent) -> list[str]:
    return [
        moment(version.known_time),
        "refused" if version.lightgbm is None else version.lightgbm,
        NONE if version.first_decision is None else moment(version.first_decision),
        number(version.decisions),
        number(version.rows),
        number(version.frauds),
        number(_figure(version.metrics.get("trees"))),
        ratio(_figure(version.metrics.get("average_precision"))),
        ratio(_figure(version.metrics.get("alert_precision"))),
        ratio(_figure(version.metrics.get("alert_recall"))),
        ratio(_figure(version.metrics.get("threshold"))),
        number(version.seconds, 1),
    ]


def _figure(value: Parameter) -> float | None:
    return float(value) if isinstance(value, int | float) else None
