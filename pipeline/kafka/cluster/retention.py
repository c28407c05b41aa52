"""The check that topics keep their records for as long as a restore of state may have to read them."""

from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.features.built_in import LATENESS_US
from pipeline.features.catalogue import LONGEST_WINDOW_US
from pipeline.settings import Settings
from schemas.times import MS_PER_DAY, US_PER_DAY
from schemas.topics import (
    ALERTS,
    CASE_EVENTS,
    CONTROL,
    DEAD_LETTERS,
    DECISION_FEATURES,
    DECISIONS,
    EXAMPLES,
    LISTS,
    MODELS,
    Topic,
)

WINDOW_HORIZON_DAYS: Final = (LONGEST_WINDOW_US + LATENESS_US) / US_PER_DAY
GRACE_DAYS: Final = 7.0
"""Days for which a label waits for its transaction or decision beyond the label retention."""


def needed_days(topic: Topic, settings: Settings) -> float | None:
    """Days for which ``topic`` must keep a record so that state can be replayed from it; None: for ever."""
    labels_days = settings.label_grace_days + GRACE_DAYS
    if topic in (EXAMPLES, MODELS, CONTROL, LISTS):
        return None
    if topic in (DECISIONS, ALERTS, DEAD_LETTERS):
        return 0.0
    if topic == CASE_EVENTS:
        return labels_days
    if topic == DECISION_FEATURES:
        return max(labels_days, settings.maturity_days + GRACE_DAYS)
    return max(WINDOW_HORIZON_DAYS, settings.deduplication_days, labels_days)


def retention_ms(topic: Topic, settings: Settings) -> int:
    """Return for how long a topic is created to keep its records; -1 for ever."""
    days = settings.retention_days.get(topic.name)
    return topic.retention_ms if days is None else round(days * MS_PER_DAY)


def wanted_problems(settings: Settings) -> list[str]:
    """Return what is wrong with the setting ``retention_days``, as sentences."""
    named = {topic.name: topic for topic in settings.topics}
    problems = []
    for name, days in settings.retention_days.items():
        needed = needed_days(named[name], settings) if name in named else 0.0
        if name not in named:
            problems.append(f"FRAUD_PIPELINE_RETENTION_DAYS names {name}, which is no topic of the pipeline")
        elif needed is None or not days > 0 or days < needed:
            at_least = f"{needed:g} days or more" if needed else "more than 0 days"
            wanted = "for ever: leave it out" if needed is None else at_least
            problems.append(f"FRAUD_PIPELINE_RETENTION_DAYS keeps {name} for {days:g} days, but it is needed {wanted}")
    return problems


def retention_problems(
    topics: Sequence[Topic], configs: Mapping[str, Mapping[str, str | None]], settings: Settings
) -> list[str]:
    """Return the problems of the topics' retention, as sentences.

    Args:
        topics: Topics to check.
        configs: Configuration of each of them by full name, as brokers have it.
        settings: Say for how long a restore may need records.
    """
    problems: list[str] = []
    for topic in topics:
        name = settings.topic(topic.name)
        problems += _problems(name, topic, configs[name], needed_days(topic, settings))
    return problems


def _problems(name: str, topic: Topic, config: Mapping[str, str | None], days: float | None) -> list[str]:
    policies = {policy.strip() for policy in (config.get("cleanup.policy") or "delete").split(",")}
    problems = []
    if topic.cleanup_policy == "delete" and "compact" in policies:
        problems.append(
            f"topic {name} is compacted, which deletes all but the last record of each key: set its "
            "cleanup.policy=delete"
        )
    if "delete" not in policies:
        return problems
    retention_ms, retention_bytes = int(config.get("retention.ms") or -1), int(config.get("retention.bytes") or -1)
    if retention_ms >= 0 and (days is None or retention_ms < days * MS_PER_DAY):
        wanted = "-1 (for ever)" if days is None else f"{round(days * MS_PER_DAY)} ({days:g} days) or more, or -1"
        problems.append(
            f"topic {name} deletes records after {retention_ms / MS_PER_DAY:.3g} days, but a restore of state reads "
            f"{'all of them' if days is None else f'those of {days:g} days'}: set its retention.ms to {wanted}"
        )
    if retention_bytes >= 0:
        problems.append(
            f"topic {name} deletes records beyond {retention_bytes} bytes a partition, whatever their age: set its "
            "retention.bytes=-1, and let retention.ms bound it"
        )
    return problems
