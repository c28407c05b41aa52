"""Names and sizes of a simulated cluster."""

from typing import Final

from agents.topology import AGENTS, specs
from pipeline.settings import Settings

PREFIX: Final = "sim."
PARTITIONS: Final = 2
AGENT_NAMES: Final = tuple(AGENTS)
LABEL_TOPICS: Final = {"labels": ("analyst", "chargeback", "rule"), "desk": ("audit", "analyst")}
"""Sources that the topics of labels speak for."""
NAMED: Final = Settings(label_topics=LABEL_TOPICS)
"""Settings with the topics of a simulated cluster."""
SPECS: Final = specs(NAMED)
