"""Becomes the Kafka Streams peer: ``python -m tests.benchmarks.peers.kafka_streams --bootstrap-servers ...``.

The process is replaced by the JVM, so that signals and the exit code are the peer's own.
"""

import argparse
import os

from tests.benchmarks.peers.kafka_streams.build import command


def main() -> None:
    """Fetch and compile what is missing, then run."""
    parser = argparse.ArgumentParser(description="job (a) in Kafka Streams, from the earliest offset")
    for name in ("bootstrap-servers", "input", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--group", required=True, help="new for each run: its state is found by it")
    parser.add_argument("--workdir", required=True, help="holds model.txt, river.json and job.json")
    parser.add_argument("--scratch", required=True, help="for RocksDB; empty at the start")
    parser.add_argument("--records", type=int, help="end after so many transactions; without it, run until SIGTERM")
    found = parser.parse_args()
    arguments = [found.bootstrap_servers, found.input, found.output, found.group, found.workdir, found.scratch]
    line = command(arguments if found.records is None else [*arguments, str(found.records)])
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
