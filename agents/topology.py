"""Where a transaction goes: the whole pipeline on one page. Start reading here.

    producers -> transactions --> [card] --> profiled --> [score] --> decisions, alerts
    analysts  -> labels --------> [card]                                   |
                      \\-------------------------------> [feedback] <-------/
                                                            |
                                        models <-- [learn] <-- examples

Each agent is a Faust agent on a channel of record batches (`agents.channel`). Its body is: one batch in, one call of
its kernel (`pipeline.engine`), outputs and input offsets committed together. The kernels hold the state of a partition,
are pure, and serve replays as well.
"""

from dataclasses import dataclass
from typing import Final

from schemas.topics import (
    ALERTS,
    CONTROL,
    DEAD_LETTERS,
    DECISIONS,
    EXAMPLES,
    LABELS,
    MODELS,
    PROFILED,
    PROGRESS,
    REROUTED,
    TRANSACTIONS,
    Topic,
)


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent: what it reads (co-partitioned, folded in this order), what it calls, what it writes."""

    name: str
    reads: tuple[Topic, ...]
    kernel: str
    writes: tuple[Topic, ...]
    """Besides these, an agent that quarantines a record writes to ``control`` and ``dead-letters``, and a worker with
    the card agent publishes its rate table on ``models`` and ``control``."""
    follows: tuple[Topic, ...] = ()
    """Topics that every worker reads whole, outside the consumer group."""
    pressing: bool = True
    """Whether an alert waits for it; the others work in fewer and larger batches."""


CARD: Final = AgentSpec(
    name="card",
    reads=(TRANSACTIONS, REROUTED, LABELS),
    kernel="pipeline.engine.card.CardPartition: validate, place, windows per card, let labels follow",
    writes=(PROFILED, REROUTED, DEAD_LETTERS, PROGRESS),
)
SCORE: Final = AgentSpec(
    name="score",
    reads=(PROFILED,),
    kernel="pipeline.engine.score, pipeline.engine.decider: known fraud and windows per merchant, models, policy",
    writes=(DECISIONS, ALERTS),
    follows=(MODELS, CONTROL),
)
FEEDBACK: Final = AgentSpec(
    name="feedback",
    # What was passed on too: a label that lay elsewhere is joined where its decision lies.
    reads=(LABELS, REROUTED, DECISIONS),
    kernel="pipeline.engine.feedback.FeedbackPartition: join a label to the features as served",
    writes=(EXAMPLES, PROGRESS),
    pressing=False,
)
LEARN: Final = AgentSpec(
    name="learn",
    reads=(EXAMPLES,),
    kernel="pipeline.engine.learn.LearnPartition: the online model learns, its versions are published",
    writes=(MODELS,),
    follows=(MODELS, CONTROL),
    pressing=False,
)


class UnknownAgent(ValueError):
    """The settings name an agent that there is not."""


AGENTS: Final = {spec.name: spec for spec in (CARD, SCORE, FEEDBACK, LEARN)}


def diagram() -> str:
    """The flow as Mermaid text, for the README; made from the declarations above."""
    lines = [
        "flowchart LR",
        "    producers([producers]) --> transactions",
        "    analysts([analysts, chargebacks]) --> labels",
    ]
    for spec in AGENTS.values():
        node = f"{spec.name}[[{spec.name} agent]]"
        lines += [f"    {_id(topic)} --> {node}" for topic in spec.reads]
        lines += [f"    {node} --> {_id(topic)}" for topic in spec.writes]
        lines += [f"    {_id(topic)} -.-> {node}" for topic in spec.follows]
    return "\n".join(lines)


def _id(topic: Topic) -> str:
    return topic.name


if __name__ == "__main__":
    print(f"```mermaid\n{diagram()}\n```")  # noqa: T201
