"""Every topic has one writer, and every agent what holds its state."""

from pkgutil import resolve_name

import pytest

from agents.loop import Partitions
from agents.topology import AGENTS, AgentSpec
from schemas.topics import CASE_EVENTS, CONTROL, LABELS, LISTS, TOPICS, TRANSACTIONS


def test_every_topic_has_the_writer_it_declares() -> None:
    writers: dict[str, list[str]] = {}
    for spec in AGENTS.values():
        for topic in spec.writes:
            writers.setdefault(topic.name, []).append(spec.name)
    reported = {name: f"{' and '.join(agents)} agent{'s' * (len(agents) > 1)}" for name, agents in writers.items()}
    # Any agent may quarantine a record, and operators write lists.
    elsewhere = (TRANSACTIONS, LABELS, CASE_EVENTS, CONTROL, LISTS)
    assert {topic.name: topic.writer for topic in TOPICS if topic not in elsewhere} == reported


@pytest.mark.parametrize("spec", AGENTS.values(), ids=lambda spec: spec.name)
def test_the_declaration_of_an_agent_names_what_holds_its_state(spec: AgentSpec) -> None:
    assert Partitions in resolve_name(spec.partitions_class).__mro__
