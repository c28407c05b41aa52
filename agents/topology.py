"""The way of a transaction: the whole pipeline on one page. Start reading here.

    producers -> transactions --> [card] --> profiled --> [score] --> decisions, alerts
                                    ^                        |
                                    |                        +------> features
                                    |                                     |
                                    |                                     v
    analysts -> labels -> [label] --+-- accepted-labels ------------> [feedback]
                                                                          |
                                                 models <-- [learn] <-- examples

Each agent is a Faust agent on a channel of record batches (`agents.channel`). Its loop
(`agents.loop`) polls a batch, processes it by one call of its kernel (`pipeline.engine`), and
commits outputs and input offsets together. Kernels hold the state of a partition and are pure;
replays call the same ones. To add an agent, declare it here.
"""

from dataclasses import dataclass, replace
from typing import Final

from pipeline.settings import Settings
from schemas.topics import (
    ACCEPTED_LABELS,
    ALERTS,
    CONTROL,
    DEAD_LETTERS,
    DECISION_FEATURES,
    DECISIONS,
    EXAMPLES,
    LABELS,
    LISTS,
    MODELS,
    PROFILED,
    PROGRESS,
    REROUTED,
    TRANSACTIONS,
    Topic,
)


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent: what it reads (co-partitioned, replayed in this order), what it calls, what it writes."""

    name: str
    reads: tuple[Topic, ...]
    partitions_class: str
    """Full name of the class that holds its kernel by partition; a worker gives it its environment and resources."""
    writes: tuple[Topic, ...]
    """Besides these, an agent that quarantines a record writes to ``control`` and ``dead-letters``, and a worker with
    the card agent publishes its rate table on ``models`` and ``control``."""
    follows: tuple[Topic, ...] = ()
    """Topics that every worker reads whole, outside the consumer group."""
    latency_critical: bool = True
    """True if an alert waits for this agent; the others work in fewer and larger batches."""
    snapshots: bool = True
    """True if snapshots are taken of its state."""
    help: str = ""
    """Its work in a line; Faust's list of agents shows it."""

    @property
    def producers(self) -> int:
        """Producers that take turns: while the markers of one's transaction are written, the other works."""
        return 2 if self.latency_critical else 1


LABEL: Final = AgentSpec(
    name="label",
    help="Check labels, stamp from when they count, place them by card.",
    reads=(LABELS,),
    partitions_class="agents.label.LabelPartitions",
    writes=(ACCEPTED_LABELS, DEAD_LETTERS),
    latency_critical=False,
    snapshots=False,
)

CARD: Final = AgentSpec(
    name="card",
    help="Validate, place, windows per card; labels follow their transactions.",
    reads=(TRANSACTIONS, REROUTED, ACCEPTED_LABELS),
    partitions_class="agents.card.CardPartitions",
    writes=(PROFILED, REROUTED, DEAD_LETTERS, PROGRESS),
)
SCORE: Final = AgentSpec(
    name="score",
    help="Known fraud and windows per merchant, models, policy.",
    reads=(PROFILED,),
    partitions_class="agents.score.ScorePartitions",
    writes=(DECISIONS, DECISION_FEATURES, ALERTS),
    follows=(MODELS, CONTROL, LISTS),
)
FEEDBACK: Final = AgentSpec(
    name="feedback",
    help="Join a label to what the models saw.",
    reads=(ACCEPTED_LABELS, DECISION_FEATURES),
    partitions_class="agents.feedback.FeedbackPartitions",
    writes=(EXAMPLES, PROGRESS),
    latency_critical=False,
)
LEARN: Final = AgentSpec(
    name="learn",
    help="The online model learns, its versions are published.",
    reads=(EXAMPLES,),
    partitions_class="agents.learn.LearnPartitions",
    writes=(MODELS,),
    follows=(MODELS, CONTROL),
    latency_critical=False,
    # The versions that it publishes are its snapshots.
    snapshots=False,
)


class UnknownAgent(ValueError):
    """The settings name an agent that there is not."""


AGENTS: Final = {spec.name: spec for spec in (LABEL, CARD, SCORE, FEEDBACK, LEARN)}
LEARNING: Final = ",".join((FEEDBACK.name, LEARN.name))
DECIDING: Final = ",".join(spec.name for spec in AGENTS.values() if spec not in (FEEDBACK, LEARN))
"""Agents of a worker that only learns, and of one that only decides, as `Settings.agents` names them.

In one process they share one interpreter lock: while it learns, transactions wait. Features of cards and merchants
need labels soon, so that these are accepted where decisions are made.
"""


def specs(settings: Settings) -> dict[str, AgentSpec]:
    """Return the agents by name, the label agent with the topics of labels that the settings name."""
    return {**AGENTS, LABEL.name: replace(LABEL, reads=settings.topics_of_labels)}


def chosen(settings: Settings) -> list[AgentSpec]:
    """Return the agents that a worker with these settings runs.

    Raises:
        UnknownAgent: One that is named does not exist, or none is named.
    """
    found, names = specs(settings), settings.agent_names
    if not names or not found.keys() >= {*names}:
        raise UnknownAgent(
            f"FRAUD_PIPELINE_AGENTS is {settings.agents!r}: give some of {', '.join(found)}, separated by commas"
        )
    return [found[name] for name in names]
