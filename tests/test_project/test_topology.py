"""The README's diagram is the topology, and every topic has one writer."""

import re
from pathlib import Path

from agents.topology import AGENTS, diagram
from schemas.topics import LABELS, TOPICS, TRANSACTIONS

README = Path(__file__).parents[2] / "README.md"


def test_readme_shows_the_topology() -> None:
    found = re.search(r"<!-- topology:begin -->\n(.*?)<!-- topology:end -->", README.read_text(), re.DOTALL)
    assert found is not None
    assert found[1] == f"```mermaid\n{diagram()}\n```\n", "run `python -m agents.topology` and paste what it prints"


def test_every_topic_has_the_writer_it_declares() -> None:
    writers = {topic.name: f"{spec.name} agent" for spec in AGENTS.values() for topic in spec.writes}
    assert {topic.name: topic.writer for topic in TOPICS if topic not in (TRANSACTIONS, LABELS)} == writers
