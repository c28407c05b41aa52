"""Becomes the Kafka Streams peer: ``python -m tests.benchmarks.peers.kafka_streams --bootstrap-servers ...``.

The process is replaced by the JVM, so that signals and the exit code are the peer's own.
"""

import os

from tests.benchmarks.peers.arguments import Arguments, arguments
from tests.benchmarks.peers.kafka_streams.build import command


def main(options: Arguments) -> None:
    """Fetch and compile what is missing, then run; state is found by the group, which is new for each run."""
    places = (options.input, options.output, options.group, str(options.workdir), str(options.scratch))
    line = command([options.bootstrap_servers, *places])
    os.execv(line[0], line)


if __name__ == "__main__":
    main(arguments())
