"""Names and sizes of a simulated cluster."""

from typing import Final

from agents.topology import AGENTS

PREFIX: Final = "sim."
PARTITIONS: Final = 2
AGENT_NAMES: Final = tuple(AGENTS)
