"""The sections of the page, each from the content alone."""

from collections.abc import Mapping, Sequence

from pipeline.backtest.labels.ground_truth import Bounds
from pipeline.backtest.report import plots
from pipeline.backtest.report.content import (
    Metric,
    ReportContent,
    ReportedTransaction,
    Side,
    Slice,
    SliceDifference,
    VariantComparison,
)
from pipeline.backtest.report.markup import Markup, element, join, table
from pipeline.backtest.report.wording import (
    MOVED,
    NONE,
    STABLE,
    between,
    drift_sentence,
    figure,
    headline,
    moment,
    number,
    pacing_sentence,
    percent,
    ratio,
    score,
    wider,
)
from pipeline.backtest.runner.result import Parameter


def opening(content: ReportContent) -> Markup:
    """Write the result, as a sentence and a picture."""
    curve = _figure(plots.precision_recall(content), "Each point is a threshold; up and right is better.")
    return join([element("p", headline(content), class_="verdict"), curve])


def summary(content: ReportContent) -> Markup:
    """The metrics of all variants."""
    parts: list[Markup] = []
    kinds = [f"{content.options.level:.0%} interval, days", f"{content.options.level:.0%} interval, cards"]
    many = len(content.variants) > 1
    if many:
        rows = [
            [metrics[0].title, *(figure(metric) for metric in metrics)]
            for metrics in zip(*(variant.metrics for variant in content.variants), strict=True)
        ]
        parts.append(table("All variants", ["Metric", *(variant.name for variant in content.variants)], rows))
    for variant in content.variants:
        rows = [_metric_row(metric) for metric in variant.metrics]
        metrics = table(f"Metrics of {variant.name}", ["Metric", "Value", *kinds], rows)
        parts.append(_collapsed(metrics, f"{variant.name} with intervals") if many else metrics)
        if variant.paced is not None:
            parts.append(element("p", pacing_sentence(variant.paced)))
    options = content.options
    parts.append(
        element(
            "p",
            f"Intervals come from {options.replicates} resamples of whole days, and of whole cards; read the wider "
            f"one. “Fraud amount from the alert on” counts frauds with an alert and those of the same card within "
            f"{options.protection_days:g} days after one; a review is taken to cost {options.review_cost:g} "
            f"{content.base_currency}. Precision, card precision and recall at {options.top} are taken by day, as the "
            "Fraud Detection Handbook defines them; a known card is one whose fraud was known before the day began, or "
            "was found among the best of a day before.",
        )
    )
    return join(parts)


def _metric_row(metric: Metric) -> list[str]:
    return [metric.title, figure(metric), between(metric.by_days, metric), between(metric.by_cards, metric)]


def labels(content: ReportContent) -> Markup:
    """Write the sources of labels, and what they leave open."""
    labels = content.labels
    parts = [element("ul", *(element("li", statement) for statement in labels.statements))]
    if labels.sources:
        rows = [
            [source.source, number(source.frauds), number(source.legitimate), number(source.median_delay_days, 1)]
            for source in labels.sources
        ]
        columns = ["Source", "Frauds", "Legitimate", "Days until half were known"]
        parts.append(table("Labels that hold, by source", columns, rows))
    rows = []
    for variant in content.variants:
        top = content.options.top
        rows.append(_bounds_row(f"{variant.name}: precision of alerts", variant.precision_bounds))
        rows.append(_bounds_row(f"{variant.name}: recall of alerts", variant.recall_bounds))
        rows.append(_bounds_row(f"{variant.name}: precision at {top}", variant.precision_at_k_bounds))
        rows.append(_bounds_row(f"{variant.name}: recall at {top} alerts a day", variant.recall_at_k_bounds))
    columns = ["Figure", "Unlabelled legitimate", "Unlabelled fraud", "At least", "At most"]
    collapsed = [table("Bounds: what the unlabelled could change", columns, rows)]
    coverage = [
        [
            variant.name,
            percent(labels.labelled_share),
            percent(variant.alerts_labelled),
            percent(variant.others_labelled),
        ]
        for variant in content.variants
    ]
    columns = ["Variant", "Of all", "Of alerts", "Of other transactions"]
    collapsed.append(table("Share that has a label", columns, coverage))
    reviews = [
        [variant.name, *map(number, (reviewed.alerts, reviewed.unanswered, reviewed.sooner))]
        for variant in content.variants
        for reviewed in [variant.reviewed]
        if reviewed is not None
    ]
    if reviews:
        columns = ["Variant", "Alerts looked at", "Without an answer", "Answered before a report"]
        collapsed.append(table("Simulated reviews, those of the warm-up included", columns, reviews))
    return join([*parts, _collapsed(join(collapsed), "Tables of what is unlabelled")])


def _bounds_row(name: str, bounds: Bounds) -> list[str]:
    return [name, *(ratio(value) for value in bounds)]


def ranking(content: ReportContent) -> Markup:
    """Write the models' quality on the way, and the recall by type of fraud."""
    parts: list[Markup] = []
    figures = [
        [variant.name, row.model, ratio(row.auc), ratio(row.log_loss)]
        for variant in content.variants
        for row in variant.prequential
    ]
    if figures:
        columns = ["Variant", "Model", "AUC ROC", "Log loss"]
        parts.append(table("Labelled examples of the whole history, before they were learned", columns, figures))
    for variant in content.variants:
        if variant.fraud_types:
            rows = [
                [row.fraud_type, number(row.frauds), number(row.amount), *map(_with_interval, row.metrics)]
                for row in variant.fraud_types
            ]
            columns = ["Fraud type", "Frauds", "Amount", *(metric.title for metric in variant.fraud_types[0].metrics)]
            parts.append(table(f"Recall by fraud type: {variant.name}", columns, rows))
    return join(parts)


def comparisons(content: ReportContent) -> Markup:
    """Variants beside the first one."""
    parts = []
    for comparison in content.comparisons:
        parts.append(element("h3", f"{comparison.other} less {comparison.base}"))
        rows = [_metric_row(metric) for metric in comparison.differences]
        level = f"{content.options.level:.0%} interval"
        columns = ["Metric", "Difference", f"{level}, days", f"{level}, cards"]
        parts.append(table("Metrics", columns, rows))
        parts.append(
            element("p", "An interval that does not contain zero is a difference that chance does not easily explain.")
        )
        parts.append(_figures(f"By amount, {content.base_currency}", "Amount", comparison.amounts))
        parts.append(_collapsed(_figures("By day", "Day", comparison.days), "By day"))
        parts.append(_sides(comparison))
        for name, side in ((comparison.base, comparison.only_base), (comparison.other, comparison.only_other)):
            if side.examples:
                caption = f"Alerts that only {name} raises: the largest amounts"
                parts.append(_collapsed(_transactions(content, caption, side.examples), caption))
    return join(parts)


def _sides(comparison: VariantComparison) -> Markup:
    def row(name: str, side: Side) -> list[str]:
        return [name, *map(number, (side.alerts, side.frauds, side.unlabelled)), number(side.caught_amount)]

    both = ["Both", number(comparison.alerts_of_both), NONE, NONE, NONE]
    columns = ["Raised by", "Alerts", "About known fraud", "Without a label", "Fraud amount only it catches"]
    rows = [
        row(f"{comparison.base} alone", comparison.only_base),
        row(f"{comparison.other} alone", comparison.only_other),
        both,
    ]
    return table("Alerts by who raises them", columns, rows)


def money(content: ReportContent) -> Markup:
    """Write the results of other thresholds."""
    parts = [
        _figure(plots.threshold_sweep(content), "By scores alone; rules and audit samples are not part of the sweep.")
    ]
    for variant in content.variants:
        rows = [
            [
                score(row.threshold), number(row.alerts_per_day, 1), ratio(row.precision), ratio(row.recall),
                number(row.caught_amount), number(row.review_cost), number(row.net_saving),
            ]
            for row in variant.sweep
        ]  # fmt: skip
        columns = ["Threshold", "Alerts a day", "Precision", "Recall", "Caught", "Review cost", "Net saving"]
        parts.append(
            _collapsed(table(f"Thresholds: {variant.name}", columns, rows), f"Threshold table of {variant.name}")
        )
    return join(parts)


def time(content: ReportContent) -> Markup:
    """Alerts and frauds by day and by amount."""
    parts = [
        _figure(plots.alerts_by_day(content), "Alerts of each day of the range."),
        _figure(plots.precision_by_day(content), "Days without an alert have no precision and are left out."),
    ]
    for variant in content.variants:
        amounts = f"amount, {content.base_currency}: {variant.name}"
        parts.append(_figures(f"Figures by {amounts}", "Amount", variant.amounts))
        days = join(
            [
                _counts(f"Counts by {amounts}", "Amount", variant.amounts),
                _counts(f"Counts by day: {variant.name}", "Day", variant.days),
                _figures(f"Figures by day: {variant.name}", "Day", variant.days),
            ]
        )
        parts.append(_collapsed(days, f"Counts, and tables by day, of {variant.name}"))
    parts.append(
        element(
            "p",
            f"Below each figure is its {content.options.level:.0%} interval: of amounts the wider one of days and of "
            f"cards, of days that of cards. At {content.options.top}: of the transactions that are among the "
            f"{content.options.top} best of their day; intervals take each day's cut as given.",
        )
    )
    return join(parts)


def _counts(caption: str, first: str, slices: list[Slice]) -> Markup:
    columns = [
        first, "Transactions", "With a label", "Alerts", "Unlabelled alerts", "Frauds", "Alerted frauds",
        "Fraud amount",
    ]  # fmt: skip
    rows = [
        [
            part.name, number(part.transactions),
            percent(part.labelled / part.transactions if part.transactions else None),
            number(part.alerts), number(part.unlabelled_alerts), number(part.frauds), number(part.alerted_frauds),
            number(part.fraud_amount),
        ]
        for part in slices
    ]  # fmt: skip
    return table(caption, columns, rows)


def _figures(caption: str, first: str, slices: Sequence[Slice | SliceDifference]) -> Markup:
    columns = [first, *(metric.title for metric in slices[0].metrics)] if slices else [first]
    return table(caption, columns, [[part.name, *map(_with_interval, part.metrics)] for part in slices])


def _with_interval(metric: Metric) -> Markup:
    """A figure above the wider of its intervals: beside each other, six of them are wider than a page."""
    interval = wider(metric)
    if interval is None:
        return join([figure(metric)])
    return join([figure(metric), Markup("<br>"), element("small", between(interval, metric))])


def scores(content: ReportContent) -> Markup:
    """Write the distribution and the calibration of scores."""
    parts = [
        _figure(plots.score_distribution(variant, position), "Each line adds up to 100 percent.")
        for position, variant in enumerate(content.variants)
    ]
    parts.append(_figure(plots.calibration(content), "Below the diagonal scores are too high, above it too low."))
    for variant in content.variants:
        rows = [
            [
                f"{score_bin.from_score:g} to {score_bin.to_score:g}",
                number(score_bin.frauds + score_bin.legitimate), number(score_bin.frauds),
                ratio(score_bin.mean_score), ratio(score_bin.fraud_share),
                f"{ratio(score_bin.share_interval.low)} to {ratio(score_bin.share_interval.high)}",
            ]
            for score_bin in variant.calibration
        ]  # fmt: skip
        columns = ["Score", "Transactions", "Frauds", "Mean score", "Share of frauds", "95 % interval (Wilson)"]
        calibrated = table(f"Calibration: {variant.name}", columns, rows)
        parts.append(_collapsed(calibrated, f"Calibration table of {variant.name}"))
    return join(parts)


def reasons(content: ReportContent) -> Markup:
    """Write the reasons of alerts."""
    parts: list[Markup] = []
    for position, variant in enumerate(content.variants):
        parts.append(
            _figure(plots.top_reasons(variant, content.options.rows, position), "An alert may give several reasons.")
        )
        if variant.reasons:
            rows = [
                [row.code, row.meaning, number(row.alerts), percent(row.share), number(row.mean_contribution, 2)]
                for row in variant.reasons
            ]
            columns = ["Code", "Meaning", "Alerts", "Share", "Mean contribution, log-odds"]
            given = table(f"Reasons: {variant.name}", columns, rows, texts=2)
            parts.append(_collapsed(given, f"Table of reasons of {variant.name}"))
    return join(parts)


def misses(content: ReportContent) -> Markup:
    """The frauds that cost most."""
    parts = []
    for variant in content.variants:
        if variant.misses:
            caption = f"Frauds that no alert of {variant.name} came before, by amount"
            parts.append(_transactions(content, caption, variant.misses))
        else:
            parts.append(element("p", f"{variant.name} missed no known fraud."))
    return join(parts)


def _transactions(content: ReportContent, caption: str, rows: list[ReportedTransaction]) -> Markup:
    names = [f"Score of {variant.name}" for variant in content.variants]
    columns = ["Transaction", "Card", "Merchant", "Time", "Label", "Fraud type", "Amount", *names]
    written = [
        [
            row.transaction_id, row.card_id, row.merchant_id, moment(row.event_time), row.label, row.fraud_type or NONE,
            number(row.amount, 2), *map(score, row.scores),
        ]
        for row in rows
    ]  # fmt: skip
    return table(caption, columns, written, texts=6)


def drift(content: ReportContent) -> Markup:
    """Write the drift of features from the training of each LightGBM version."""
    parts: list[Markup] = []
    for model in content.drift:
        parts.append(element("h3", f"LightGBM {model.lightgbm}"))
        parts.append(element("p", drift_sentence(model)))
        if not model.known:
            continue
        caption = f"Population stability index: below {STABLE} is commonly read as stable, above {MOVED} as moved."
        parts.append(_figure(plots.feature_drift(model, content.options.rows), caption))
        rows = [
            [
                row.feature, ratio(row.stability_index), ratio(row.ks_statistic), percent(row.missing_before),
                percent(row.missing_in_range),
            ]
            for row in model.features
        ]  # fmt: skip
        columns = ["Feature", "Index", "Kolmogorov-Smirnov", "Without value, training", "Without value, range"]
        drawn = table(f"Drift of the features of LightGBM {model.lightgbm}", columns, rows)
        parts.append(_collapsed(drawn, f"Table of all features of LightGBM {model.lightgbm}"))
    return join(parts) if parts else element("p", "Nothing was scored in the range.")


def asked(content: ReportContent) -> Markup:
    """Parameters, models, counts."""
    parts = [_named("Parameters", dict(content.parameters) | {"range": f"{content.from_time} to {content.to_time}"})]
    for variant in content.variants:
        about = dict(variant.models) | dict(variant.parameters) | {"threshold": variant.threshold}
        alerts = {f"alerts by {name}": rows for name, rows in variant.selections.items()}
        parts.append(_collapsed(_named(f"Variant {variant.name}", about | alerts), f"Variant {variant.name}"))
    if content.counts:
        parts.append(_collapsed(_named("Counts", content.counts), "Counts of the input"))
    return join(parts)


def _named(caption: str, values: Mapping[str, Parameter]) -> Markup:
    rows = [[name, NONE if value is None else str(value)] for name, value in values.items()]
    return table(caption, ["Name", "Value"], rows, texts=2)


def _figure(svg: str, caption: str) -> Markup:
    return element("figure", Markup(svg), element("figcaption", caption))


def _collapsed(inner: Markup, summary: str) -> Markup:
    return element("details", element("summary", summary), inner)
