"""Whether topics keep their records for as long as a restore of state may have to read them."""

from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.features.catalogue import LATENESS_US, LONGEST_WINDOW_US, US_PER_DAY
from pipeline.settings import Settings
from schemas.topics import CONTROL, DECISION_FEATURES, EXAMPLES, MODELS, Topic

MS_PER_DAY: Final = 24 * 60 * 60 * 1_000
WINDOW_HORIZON_DAYS: Final = (LONGEST_WINDOW_US + LATENESS_US) / US_PER_DAY
PATIENCE_DAYS: Final = 7.0
"""How long a label waits for its transaction or decision beyond the label horizon."""


def needed_days(topic: Topic, settings: Settings) -> float | None:
    """Days for which ``topic`` must keep a record so that state can be folded from it; None: for ever."""
    labels_days = settings.label_horizon_days + PATIENCE_DAYS
    if topic in (EXAMPLES, MODELS, CONTROL):
        return None
    if topic == DECISION_FEATURES:
        return max(labels_days, settings.maturity_days + PATIENCE_DAYS)
    return max(WINDOW_HORIZON_DAYS, settings.dedup_horizon_days, labels_days)


def retention_problems(
    topics: Sequence[Topic], configs: Mapping[str, Mapping[str, str | None]], settings: Settings
) -> list[str]:
    """What is wrong with the retention of ``topics``, as sentences; ``configs`` by full name, as brokers have them."""
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
