"""The end of a crashed node's old session, which it must await before it may start again.

A node that was killed still counts as alive until its session times out, and leads its partitions as soon as it is up:
alone, so that nobody serves, but its coordinators load and end transactions. When the session ends they lose leadership
and get it back, and Kafka does not stand that: coordinators went on from a part of their logs (4.4.0), and transactions
had ended whose markers were never written (``docs/decisions/0004-exactly-once.md``). So the controller alone is started
first, and ends the session; the node that follows leads nothing until it is whole.
"""

import logging
import time
from pathlib import Path
from typing import Final

from pipeline.broker.process import BrokerError, GuardedProcess

log = logging.getLogger(__name__)

SESSION_MS: Final = 200
FENCED: Final = "because its session has timed out"
"""Said by the controller when it takes the leadership from the node's partitions."""
ACTIVE: Final = "Performing controller activation"
SILENCE_S: Final = 10.0
"""A controller that has been active for so long without a word has nobody to fence, unless it stands still."""
TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.02


def crashed(log_dir: Path) -> bool:
    """Return True if the node whose data lie in ``log_dir`` was not stopped cleanly."""
    return any(_metadata(log_dir)) and not (log_dir / ".kafka_cleanshutdown").exists()


def end_session(command: list[str], configuration: Path, log_dir: Path, output: Path, lock: int) -> None:
    """Start the controller by ``command``, wait until it has fenced the node, and stop it.

    Raises ``BrokerError`` where it ends by itself; where it says nothing in time the node is started all the same.
    """
    controller = GuardedProcess([*command, "kafka.Kafka", str(configuration)], output, lock)
    try:
        deadline_s = time.monotonic() + TIMEOUT_S
        active_s = float("inf")
        while FENCED not in (text := output.read_text(encoding="utf-8", errors="replace")):
            if (code := controller.poll()) is not None:
                raise BrokerError(f"the embedded broker's controller ended (exit code {code}). {text[-2_000:]}")
            if ACTIVE in text:
                active_s = min(active_s, time.monotonic())
            if time.monotonic() > min(deadline_s, active_s + SILENCE_S):
                log.warning("the broker's controller ended no old session; if workers then miss offsets, start it anew")
                return
            time.sleep(POLL_S)
        # It is written next, or next but one; the controller writes something twice a second.
        for _ in range(2):
            before = _size(log_dir)
            while _size(log_dir) == before and time.monotonic() < deadline_s and controller.poll() is None:
                time.sleep(POLL_S)
    finally:
        controller.stop()


def _metadata(log_dir: Path) -> list[Path]:
    return sorted((log_dir / "__cluster_metadata-0").glob("*.log"))


def _size(log_dir: Path) -> int:
    return sum(path.stat().st_size for path in _metadata(log_dir))
