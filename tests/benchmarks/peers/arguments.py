"""What the runner tells a peer: ``python -m tests.benchmarks.peers.NAME --bootstrap-servers ...``."""

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arguments:
    """Where a peer reads and writes. It begins at the earliest offset and runs until it is sent SIGTERM."""

    bootstrap_servers: str
    input: str
    output: str
    group: str
    workdir: Path
    """Holds the models and ``job.json``."""
    scratch: Path
    """For state of the peer's own; empty at the start."""


def parser() -> argparse.ArgumentParser:
    """Of the arguments that every engine is given."""
    made = argparse.ArgumentParser()
    for name in ("bootstrap-servers", "input", "output", "group"):
        made.add_argument(f"--{name}", required=True)
    for name in ("workdir", "scratch"):
        made.add_argument(f"--{name}", required=True, type=Path)
    return made


def arguments() -> Arguments:
    """The arguments of this process."""
    return Arguments(**vars(parser().parse_args()))
