"""The permissions of each role on a secured cluster, from the declarations of agents and topics.

A role is a person or program that gets a principal of its own. Reading and writing a topic imply describing it.
"""

from typing import Final, NamedTuple

from agents.topology import CARD, SCORE, chosen, specs
from pipeline.kafka.cluster.clients import READER_GROUP
from pipeline.kafka.session.gateway import STAGE
from pipeline.models.publish import TRANSACTIONAL_ID as DECIDES
from pipeline.settings import Settings
from schemas.topics import (
    ALERTS,
    CASE_EVENTS,
    CONTROL,
    DEAD_LETTERS,
    DECISIONS,
    EXAMPLES,
    LISTS,
    MODELS,
    PROFILED,
    TRANSACTIONS,
)

READ, WRITE, CREATE, DELETE, DESCRIBE, DESCRIBE_CONFIGS = (
    "read", "write", "create", "delete", "describe", "describe_configs",
)  # fmt: skip
TOPIC, GROUP, TRANSACTIONAL_ID, CLUSTER = "topic", "group", "transactional_id", "cluster"

LABELLER: Final = "labeller"
REVIEWER: Final = "analyst"
"""Source of the labels that people give by `fraud-pipeline label`."""
AUDITOR: Final = "audit"
"""Source of the labels that people give to what an audit selected."""
CONSOLE: Final = "console-"
"""Prefix of the transactional ids of consoles."""
REPROCESSED: Final = "reprocess-"
"""Prefix of the topics that an operator may decide history into, and of the transactional ids for it."""
WEBHOOK: Final = "webhook"
"""Group of `fraud-pipeline webhook`."""
DEMO: Final = "demo-"
"""Prefix of everything that `fraud-pipeline run` makes on a cluster where no prefix is set."""


class Grant(NamedTuple):
    """Operations that a role may do on one resource, or on all whose names begin alike."""

    resource: str
    name: str
    """Full name, or how the names begin."""
    operations: tuple[str, ...]
    prefixed: bool = False


def roles(settings: Settings) -> dict[str, list[Grant]]:
    """Return what each role may do; everything else is refused, if the cluster refuses what no rule allows."""
    labellers = {f"{LABELLER}:{name}": [_grant(settings, name, WRITE)] for name in settings.label_topics}
    return {
        "producer": [_grant(settings, TRANSACTIONS.name, WRITE)],
        **labellers,
        "gateway": _gateway(settings),
        "analyst": _analyst(settings),
        "console": _console(settings),
        "worker": _worker(settings),
        "operator": _operator(settings),
        "resender": _resender(settings),
        "replayer": _replayer(settings),
        "webhook": _webhook(settings),
        "demo": _demo(),
    }


_READS: Final = Grant(GROUP, READER_GROUP, (DESCRIBE,))
"""The grant that a reader without a group needs."""
_JOINS: Final = Grant(CLUSTER, "kafka-cluster", (DESCRIBE_CONFIGS,))
"""The grant that the member of a group needs: it asks for the protocol by which brokers let groups be joined."""


def _grant(settings: Settings, name: str, *operations: str, resource: str = TOPIC, prefixed: bool = False) -> Grant:
    return Grant(resource, settings.topic(name), operations, prefixed)


def _gateway(settings: Settings) -> list[Grant]:
    """Replace card numbers by tokens; which topic to read is no setting, and its rule is the operator's own."""
    targets = [TRANSACTIONS.name, *settings.label_topics]
    return [
        *(_grant(settings, name, WRITE, DESCRIBE_CONFIGS) for name in (*targets, DEAD_LETTERS.name)),
        _grant(settings, f"{STAGE}-", READ, resource=GROUP, prefixed=True),
        _grant(settings, f"{STAGE}-", WRITE, resource=TRANSACTIONAL_ID, prefixed=True),
        _READS,
        _JOINS,
    ]


def _analyst(settings: Settings) -> list[Grant]:
    """Follow alerts, find a transaction's card, see what others said of it, and label it."""
    labelled = settings.label_sources.speaking_for(REVIEWER)
    return [
        # What was quarantined, readers skip by `control`; whether the clock is simulated, the topic's settings show.
        *(_grant(settings, topic.name, READ) for topic in (ALERTS, DECISIONS, CONTROL)),
        _grant(settings, TRANSACTIONS.name, READ, DESCRIBE_CONFIGS),
        *(_grant(settings, name, READ, *([WRITE] if name in labelled else [])) for name in settings.label_topics),
        _READS,
    ]


def _console(settings: Settings) -> list[Grant]:
    """Show cases to analysts, and write what they do with them; it may take over no model."""
    sources = settings.label_sources
    labelled = {*sources.speaking_for(REVIEWER), *sources.speaking_for(AUDITOR)}
    read = (ALERTS, DECISIONS, PROFILED, EXAMPLES, MODELS, CONTROL, DEAD_LETTERS)
    return [
        *(_grant(settings, topic.name, READ) for topic in read),
        _grant(settings, TRANSACTIONS.name, READ, DESCRIBE_CONFIGS),
        _grant(settings, CASE_EVENTS.name, READ, WRITE),
        *(_grant(settings, name, READ, *([WRITE] if name in labelled else [])) for name in settings.label_topics),
        _grant(settings, CONSOLE, WRITE, resource=TRANSACTIONAL_ID, prefixed=True),
        _READS,
    ]


def _worker(settings: Settings) -> list[Grant]:
    """Run the agents that the settings name."""
    agents = chosen(settings)
    writes = [topic for agent in agents for topic in (*agent.writes, CONTROL, DEAD_LETTERS)]
    if CARD in agents:
        writes.append(MODELS)
    # On start an agent looks at what it wrote before.
    reads = [topic for agent in agents for topic in (*agent.reads, *agent.follows)] + [MODELS, *writes]
    # Workers of another kernel version may run, and blocks of theirs are known by what the card agent has read.
    mixing = any(PROFILED in (*agent.reads, *agent.writes) for agent in agents)
    looked_at = [agent for agent in (CARD, SCORE) if mixing and agent not in agents]
    topics: dict[str, list[str]] = {topic.name: [DESCRIBE, DESCRIBE_CONFIGS] for topic in settings.topics}
    for operation, wanted in ((READ, reads), (WRITE, writes)):
        for topic in dict.fromkeys(wanted):
            topics[topic.name].append(operation)
    return [
        *(_grant(settings, name, *operations) for name, operations in topics.items()),
        *(_grant(settings, agent.name, READ, resource=GROUP) for agent in agents),
        *(_grant(settings, agent.name, DESCRIBE, resource=GROUP) for agent in looked_at),
        *(_grant(settings, agent.name, WRITE, resource=TRANSACTIONAL_ID, prefixed=True) for agent in agents),
        _READS,
        _JOINS,
    ]


def _operator(settings: Settings) -> list[Grant]:
    """Create topics, change versions and lists, release held labels, look at everything, and decide history again."""
    writes = {MODELS.name, CONTROL.name, LISTS.name, EXAMPLES.name}
    groups = (agent.name for agent in specs(settings).values())
    return [
        *(
            _grant(settings, topic.name, READ, CREATE, DESCRIBE_CONFIGS, *([WRITE] if topic.name in writes else []))
            for topic in settings.topics
        ),
        *(_grant(settings, name, DESCRIBE, resource=GROUP) for name in groups),
        _READS,
        _grant(settings, REPROCESSED, READ, WRITE, CREATE, DELETE, DESCRIBE_CONFIGS, prefixed=True),
        _grant(settings, REPROCESSED, WRITE, resource=TRANSACTIONAL_ID, prefixed=True),
        _grant(settings, DECIDES, WRITE, resource=TRANSACTIONAL_ID),
    ]


def _resender(settings: Settings) -> list[Grant]:
    """Look at dead letters, and send them again as their producers did."""
    return [
        _grant(settings, DEAD_LETTERS.name, READ),
        *(_grant(settings, name, WRITE) for name in (TRANSACTIONS.name, *settings.label_topics)),
        _READS,
    ]


def _replayer(settings: Settings) -> list[Grant]:
    """Feed a simulation to topics with a simulated clock, no faster than the card agent, and review its alerts."""
    return [
        *(_grant(settings, name, WRITE, DESCRIBE_CONFIGS) for name in (TRANSACTIONS.name, *settings.label_topics)),
        _grant(settings, ALERTS.name, READ),
        _grant(settings, CARD.name, DESCRIBE, resource=GROUP),
        _READS,
    ]


def _webhook(settings: Settings) -> list[Grant]:
    """Tell an URL of new cases and stopped rules."""
    return [
        *(_grant(settings, topic.name, READ) for topic in (ALERTS, CONTROL)),
        _grant(settings, DEAD_LETTERS.name, WRITE),
        _grant(settings, WEBHOOK, READ, resource=GROUP),
        _READS,
    ]


def _demo() -> list[Grant]:
    """Run everything below a prefix of its own, beside whatever else there is on the cluster."""
    return [
        Grant(TOPIC, DEMO, (READ, WRITE, CREATE, DESCRIBE_CONFIGS), prefixed=True),
        Grant(GROUP, DEMO, (READ,), prefixed=True),
        Grant(TRANSACTIONAL_ID, DEMO, (WRITE,), prefixed=True),
        _READS,
        _JOINS,
    ]
