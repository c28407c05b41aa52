"""The model card of a LightGBM version: what a reviewer must know of it, made from records and nothing else."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from pipeline.features.catalogue import MEANINGS
from pipeline.models.description import Facts, label_regime
from pipeline.models.history import VersionHistory, event_time
from schemas.messages import Activation, Assessment

NOT_RECORDED: Final = "not recorded"
PURPOSE: Final = (
    "The version scores card transactions after their authorisation. A score at or above the threshold of the policy "
    "raises an alert, which a person looks at. The version declines no transaction, and decides about no person."
)
TOP_FEATURES: Final = 10
_METRICS: Final = {
    "average_precision": "average precision",
    "auc_roc": "area under the ROC curve",
    "card_precision_100": "card precision at 100 a day",
    "alert_precision": "precision of alerts",
    "alert_recall": "share of frauds alerted",
    "expected_to_observed_frauds": "expected to observed frauds",
}
_OF_LABELS: Final = {
    "reported": "which transactions get labels",
    "delay_days": "days until a report",
    "label_delay_days": "days until a report",
    "delay_spread": "spread of these days",
    "never_reported": "share of frauds that nobody reports",
    "early_share": "share of reports that come early",
    "early_hours": "hours within which those come",
    "legitimate_share": "share of legitimate transactions with labels",
    "corrected_share": "share of labels that are corrected",
    "correction_days": "days until a correction",
    "maturity_days": "days after which no report means legitimate",
    "frauds_by_age_days": "frauds, by age in days",
    "others_by_age_days": "other transactions, by age in days",
    "report_delays": "reports by",
    "reports": "number",
    "half_days": "days until half had come",
    "nine_tenths_days": "days until nine tenths had come",
}
"""Words for what a version says of its labels."""


class CardSources(NamedTuple):
    """The records that a card is made from."""

    facts: Facts
    """Facts of the version (`pipeline.models.description.facts_of`)."""
    gains: Mapping[str, float]
    """Share of all splits' gain by feature, the largest first."""
    policy: Facts | None
    """Facts of the policy that was made for it."""
    history: VersionHistory
    """History of the cluster; empty without one."""
    barred: str
    """Patterns of features that no version may be trained on."""
    review_after: timedelta
    """Time from the first activation to the review."""


def model_card(sources: CardSources) -> str:
    """Return the card as Markdown."""
    facts = sources.facts
    parts = [
        [f"# Model card: LightGBM version {facts['version']}", "", "Made from the records of the version and of its "
         "cluster. Do not edit it; make it again.", "", "## Purpose", "", PURPOSE, ""],
        _overview(sources),
        _recipe(sources),
        _data(facts),
        _performance(facts),
        _calibration(facts),
        _segments(facts),
        _threshold(sources),
        _stability(sources),
        _sensitivity(facts),
        _approvals(sources),
        _limits(sources),
    ]  # fmt: skip
    return "\n".join(line for part in parts for line in part).rstrip("\n") + "\n"


def review_date(sources: CardSources) -> datetime | None:
    """Return when the version must be looked at again; None before it was first active."""
    first = sources.history.activations_of(sources.facts["digest"])[:1]
    return first[0].activated_at + sources.review_after if first else None


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a Markdown table, its cells with a few digits and without anything that would end a cell.

    >>> table(["a", "b"], [["x|y", 0.25]])
    ['| a | b |', '| --- | --- |', '| x\\\\|y | 0.25 |', '']
    """
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    return [*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows), ""]


def cell(value: Any) -> str:
    """Return a value as the cell of a table."""
    if value is None or value == "":
        return NOT_RECORDED
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1_000 and value == round(value) else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _overview(sources: CardSources) -> list[str]:
    facts, history = sources.facts, sources.history
    activations = history.activations_of(facts["digest"])
    policy, due = sources.policy, review_date(sources)
    rows = [
        ("version", facts["version"]),
        ("SHA-256 of its content", facts["digest"]),
        ("kernel of the features", facts["kernel"]),
        ("libraries", ", ".join(f"{name} {version}" for name, version in sorted(facts["libraries"].items()))),
        ("first active", activations[0].activated_at if activations else "on no cluster that was asked"),
        ("activated by", activations[0].by if activations else None),
        ("policy", policy["version"] if policy else None),
        ("review due", f"{due:%Y-%m-%d}" if due else f"{sources.review_after.days} days after its first activation"),
    ]
    return ["## At a glance", "", *table(["", ""], rows)]


def _recipe(sources: CardSources) -> list[str]:
    facts = sources.facts
    features = [
        (f"`{name}`", MEANINGS.get(name), f"{sources.gains.get(name, 0.0):.1%}" if sources.gains else None)
        for name in facts["features"]
    ]
    top = list(sources.gains)[:TOP_FEATURES]
    settings = [(name.replace("_", " "), str(value)) for name, value in facts["hyperparameters"].items()]
    return [
        "## Recipe",
        "",
        f"{facts['trees']} trees, with a seed and a number of threads that make the training repeatable.",
        "",
        *table(["setting", "value"], [*settings, *((f"calibration {n}", v) for n, v in facts["calibration"].items())]),
        f"It may ask for {len(features)} features. A share of gain is what the splits on a feature have added, of all.",
        "",
        *table(["feature", "meaning", "share of gain"], features),
        f"The largest shares: {', '.join(f'`{name}`' for name in top)}." if top else "No split was made.",
        "",
    ]


def _data(facts: Facts) -> list[str]:
    periods, frauds = facts.get("periods", {}), facts.get("frauds", {})
    of_periods = [
        (name, period.get("from"), period.get("to"), period.get("rows"), frauds.get(name))
        for name, period in periods.items()
    ]
    given = facts.get("input", {})
    lines = ["## Data", ""]
    columns = ["period", "from", "to", "rows", "frauds"]
    lines += table(columns, of_periods) if of_periods else [f"Periods: {NOT_RECORDED}.", ""]
    lines += [f"Digest of the rows: {cell(given.get('digest'))}.", ""]
    regime = label_regime(facts)
    rows = [(label_words(name), regime[name]) for name in sorted(regime, key=_by_number)]
    return [
        *lines,
        *("### Label regime", ""),
        *(table(["", ""], rows) if rows else [f"The label regime is {NOT_RECORDED}.", ""]),
    ]


def _by_number(name: str) -> list[Any]:
    """Return a key that sorts ages as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def label_words(name: str) -> str:
    """Return the words for a dotted name of the label regime.

    >>> label_words("regime.reported"), label_words("frauds_by_age_days.30-")
    ('which transactions get labels', 'frauds, by age in days: 30 or more')
    """
    group, _, rest = name.removeprefix("regime.").partition(".")
    words = _OF_LABELS.get(group, group.replace("_", " "))
    if not rest:
        return words
    low, dash, high = rest.partition("-")
    if dash and low.isdigit():
        return f"{words}: {low} to {high}" if high else f"{words}: {low} or more"
    source, _, figure = rest.rpartition(".")
    return f"{words} {source}: {_OF_LABELS.get(figure, figure.replace('_', ' '))}"


def _performance(facts: Facts) -> list[str]:
    metrics, benchmark = facts["metrics"], facts.get("benchmark", {})
    lines = ["## Performance", "", "On the validation period, which chose the number of trees, the calibration and the "
             "threshold: the figures flatter a little.", ""]  # fmt: skip
    lines += table(["metric", "value"], [(words, metrics.get(name)) for name, words in _METRICS.items()])
    if benchmark:
        used = ", ".join(f"`{name}`" for name in benchmark.get("features", ()))
        rows = [
            ("this version", metrics.get("average_precision")),
            (f"logistic regression on {used}", benchmark.get("logistic_regression")),
            ("the amount alone", benchmark.get("amount")),
        ]
        lines += ["Against what needs no trees, on the same rows:", ""]
        lines += table(["model", "average precision"], rows)
    else:
        lines += [f"A simple benchmark is {NOT_RECORDED}.", ""]
    if periods := facts.get("by_period"):
        by_period = [
            (
                period["from"],
                period["days"],
                period["rows"],
                period["frauds"],
                period["average_precision"],
                period["auc_roc"],
            )
            for period in periods
        ]
        lines += table(["from", "days", "rows", "frauds", "average precision", "AUC"], by_period)
    return lines


def _calibration(facts: Facts) -> list[str]:
    found = facts.get("calibration_table")
    if not found:
        return ["## Calibration", "", f"The calibration table is {NOT_RECORDED}.", ""]
    rows = [
        (f"{row['from']:g} to {row['to']:g}", row["rows"], row["mean_score"], row["observed_rate"]) for row in found
    ]
    return ["## Calibration", "", *table(["score", "transactions", "mean score", "observed rate"], rows)]


def _segments(facts: Facts) -> list[str]:
    found = facts.get("segments")
    if not found:
        return ["## Outcomes by segment", "", f"Outcomes by segment are {NOT_RECORDED}.", ""]
    columns = [
        "segment", "value", "transactions", "frauds", "expected", "alert rate", "precision",
        "false positives per 1,000",
    ]  # fmt: skip
    rows = [
        (
            *(row["segment"], row["value"], row["rows"], row["frauds"], row["expected_frauds"], row["alert_rate"]),
            "no alert" if row["precision"] is None else row["precision"],
            row["false_positives_per_1000"],
        )
        for row in found
    ]
    introduction = (
        "On the validation period, by the threshold that was chosen there. Attributes are those of the history."
    )
    return ["## Outcomes by segment", "", introduction, "", *table(columns, rows)]


def _stability(sources: CardSources) -> list[str]:
    digest, history = sources.facts["digest"], sources.history
    events: list[Activation | Assessment] = [*history.assessments_of(digest), *history.activations_of(digest)]
    rows = [
        (
            *(event_time(event), event.figures.get("compared_with")),
            *(event.figures["top_overlap"], event.figures.get("top_rank_correlation")),
        )
        for event in events
        if "top_overlap" in event.figures
    ]
    lines = ["## Stability", ""]
    if not rows:
        return [*lines, f"A comparison of its highest scores with another version's is {NOT_RECORDED}.", ""]
    introduction = (
        "The best cards of a day against those of the version before: the share of them that both have, and the rank "
        "correlation over those that either has."
    )
    return [*lines, introduction, "", *table(["time", "compared with", "overlap", "rank correlation"], rows)]


def _sensitivity(facts: Facts) -> list[str]:
    found = facts.get("sensitivity")
    lines = ["## Sensitivity to wrong labels", ""]
    if not found:
        return [*lines, f"It is {NOT_RECORDED}; `fraud-pipeline train --wrong-labels` measures it.", ""]
    rows = [(row["labels"], row["wrong"], row["average_precision"], row["card_precision_100"]) for row in found]
    introduction = (
        "The same training on labels that were spoilt on purpose, measured on the true ones of the validation period."
    )
    columns = ["wrong labels", "number", "average precision", "card precision at 100"]
    return [*lines, introduction, "", *table(columns, rows)]


def _threshold(sources: CardSources) -> list[str]:
    policy, metrics = sources.policy, sources.facts["metrics"]
    if policy is None:
        return ["## Threshold and volume", "", f"A policy that was made for it is {NOT_RECORDED}.", ""]
    rows = [
        ("threshold", policy["threshold"]),
        ("budget of alerts a day", policy["metadata"].get("alerts_per_day")),
        ("alerts a day, on the validation period", metrics.get("alerts_per_day")),
        ("share of transactions alerted", metrics.get("alert_rate")),
        ("blend (part of the online model)", policy["blend"]),
        ("audit", policy["audit"] or f"rate {policy['audit_rate']:g}"),
        ("rules", ", ".join(policy["rules"]) or "none"),
    ]
    return ["## Threshold and volume", "", f"Of policy {policy['version']}.", "", *table(["", ""], rows)]


def _approvals(sources: CardSources) -> list[str]:
    digest, history = sources.facts["digest"], sources.history
    rows = [
        (activation.activated_at, activation.step, activation.by, activation.reason)
        for activation in history.activations_of(digest)
    ]
    lines = ["## Approvals", ""]
    lines += (
        table(["time", "step", "by", "reason"], rows)
        if rows
        else ["It was never activated on a cluster that was asked.", ""]
    )
    own = history.assessments_of(digest)
    if own:
        lines += ["Its own comparisons before:", "", *_assessments(own)]
    rejected = [challenger for challenger in history.challengers_of(digest) if challenger.outcome == "rejected"]
    lines += ["### Rejected challengers", ""]
    return [*lines, *(_assessments(rejected) if rejected else ["None are recorded.", ""])]


def _assessments(found: Sequence[Assessment]) -> list[str]:
    rows = [
        (event_time(row), ", ".join(at.version for at in row.versions), row.outcome, row.reason, _figures(row))
        for row in found
    ]
    return table(["time", "versions", "outcome", "reason", "figures"], rows)


def _figures(event: Activation | Assessment) -> str:
    simple = {name: figure for name, figure in event.figures.items() if isinstance(figure, int | float | str)}
    return ", ".join(f"{name.replace('_', ' ')} {cell(value)}" for name, value in simple.items())


def _limits(sources: CardSources) -> list[str]:
    return ["## Limits", "", *(f"- {limit}" for limit in limits(sources)), ""]


def limits(sources: CardSources) -> Iterator[str]:
    """Yield what the version must not be taken for, as far as the records show."""
    facts = sources.facts
    period = facts.get("periods", {}).get("validation")
    if period:
        days = f"{period['from'][:10]} to {period['to'][:10]}"
        yield f"It was measured on {days} alone. What came later is for a backtest."
    regime = label_regime(facts)
    if "frauds-only" in (regime.get("reported"), regime.get("regime.reported")):
        yield "Legitimate transactions had no labels: those that nobody reported count as legitimate."
    elif not (regime.get("reported") or regime.get("regime.reported")):
        yield "The label regime is not recorded: compare it with that of the traffic before you trust the figures."
    if len(facts["features"]) and not any("known" in name or "fraud" in name for name in facts["features"]):
        yield "No feature knows reported frauds: it cannot follow a new pattern before it is trained again."
    if not facts.get("benchmark"):
        yield "It was not compared with a simple benchmark."
    yield f"It fits the features of kernel {facts['kernel']} alone."
    barred = sources.barred or "none are set (FRAUD_PIPELINE_BARRED_FEATURES)"
    yield f"Barred features: {barred}. The recipe lists every feature that it may ask for; no other enters a score."
