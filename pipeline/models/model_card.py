"""The model card of a LightGBM version: what a reviewer must know of it, made from records and nothing else."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from markdown_it import MarkdownIt
from markupsafe import Markup

from pipeline.features.catalogue import MEANINGS
from pipeline.models.description import Facts, label_regime
from pipeline.models.version_history import VersionHistory, event_time
from pipeline.observability.templates import template
from schemas.messages import Activation, Assessment

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


_PARTS: Final = ("periods", "frauds", "input", "benchmark", "by_period", "calibration_table", "segments", "sensitivity")
"""Facts that older versions do not have."""


def model_card(sources: CardSources) -> str:
    """Return the card as Markdown."""
    facts, history = sources.facts, sources.history
    digest = facts["digest"]
    activations, own = history.activations_of(digest), history.assessments_of(digest)
    events: list[Activation | Assessment] = [*own, *activations]
    regime = label_regime(facts)
    first = activations[0].activated_at if activations else None
    return template(__package__, "card.md.jinja", (event_time, figures), cell).render(
        facts={name: {} for name in _PARTS} | facts,
        gains=sources.gains,
        policy=sources.policy,
        meanings=MEANINGS,
        review_after=sources.review_after,
        due=None if first is None else first + sources.review_after,
        label_regime=[(label_words(name), regime[name]) for name in sorted(regime, key=_by_number)],
        activations=activations,
        compared=[event for event in events if "top_overlap" in event.figures],
        own=own,
        rejected=[challenger for challenger in history.challengers_of(digest) if challenger.outcome == "rejected"],
        limits=limits(sources),
    )


def card_page(card: str, version: str) -> str:
    """Return a card as an HTML page: its headings, paragraphs, lists, tables and code, and no other markup."""
    rules = ("heading", "list", "table", "backticks", "entity", "escape")
    return template(__package__, "card.html.jinja").render(
        version=version, body=MarkdownIt("zero").enable(rules).render(card)
    )


def cell(value: Any) -> Markup:
    """Return a value for the Markdown: with a few digits, and without anything that would end a table's cell.

    >>> cell("x|y"), cell(0.25), cell(1234), cell(None)
    (Markup('x\\\\|y'), Markup('0.25'), Markup('1,234'), Markup('not recorded'))
    """
    if isinstance(value, Markup):
        return value
    if value is None or value == "":
        text = "not recorded"
    elif isinstance(value, float):
        text = f"{value:,.0f}" if value >= 1_000 and value == round(value) else f"{value:.4g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    elif isinstance(value, datetime):
        text = f"{value:%Y-%m-%d %H:%M}"
    else:
        text = "".join(character if character.isprintable() else " " for character in str(value))
        text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    # Its markup is that of Markdown.
    return Markup(text)  # noqa: S704


def figures(event: Activation | Assessment) -> str:
    """Return the plain figures of an event in words."""
    simple = {name: figure for name, figure in event.figures.items() if isinstance(figure, int | float | str)}
    return ", ".join(f"{name.replace('_', ' ')} {cell(value)}" for name, value in simple.items())


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
