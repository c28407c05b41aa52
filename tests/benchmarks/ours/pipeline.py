"""Job (b) is done by the pipeline as it ships: ``fraud-pipeline worker``, each a process, with all agents."""

import os
import signal
import sys
import threading
from types import FrameType

from pipeline.demo.processes import check_alive, running_workers, settings_environment
from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.ours.job import pipeline_settings
from tests.benchmarks.peers.arguments import Arguments, parser

LOOK_S = 0.2


def main(options: Arguments, workers: int, partitions: int) -> None:
    """Become the one worker, so that nothing but it is measured; or keep several running until SIGTERM.

    Raises:
        WorkerDied: One of several ends before.
    """
    settings = pipeline_settings(options.bootstrap_servers, options.group, options.scratch, partitions)
    if workers == 1:
        environment = {**os.environ, **settings_environment(settings)}
        os.execve(sys.executable, [sys.executable, "-m", "pipeline.cli", "worker"], environment)
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    with running_workers(settings, workers, options.scratch / "logs") as running:
        while not stopping.wait(LOOK_S):
            check_alive(running)


if __name__ == "__main__":
    command_line = parser()
    command_line.add_argument("--workers", type=int, default=1)
    command_line.add_argument("--partitions", type=int, default=PARTITIONS)
    given = vars(command_line.parse_args())
    count, number = given.pop("workers"), given.pop("partitions")
    main(Arguments(**given), count, number)
