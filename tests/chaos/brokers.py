"""The brokers of a run, and what is done to them: killed, paused, restarted in turn, a replica damaged on one disk."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence

from pipeline.broker import EmbeddedBroker
from tests.chaos.schedule import Fault
from tests.helpers.batches import damage_batch, last_batch
from tests.helpers.cluster import Node, Nodes
from tests.helpers.waiting import seconds_until

SERVED_S = 10.0
"""A damaged replica goes on to lead for so long after a worker has met the damage."""
BATCH_S = 20.0
"""Longest wait for a batch to damage."""
WHOLE_S = 300.0
"""Longest time until brokers that were hurt have all replicas in sync again, on a busy machine."""
MOVED_S = 120.0
"""Longest time until another replica leads."""
POLL_S = 0.2


class BrokersFailed(RuntimeError):
    """The brokers did not come back from a fault, which says nothing of the pipeline."""


class Brokers:
    """One embedded broker, or the nodes of a cluster.

    Where there is one, a fault ends before anything else is done. Of several, one fault goes on while others hurt the
    workers, and the next one of brokers waits for its end.
    """

    def __init__(self, brokers: EmbeddedBroker | Nodes) -> None:
        self._cluster = brokers if isinstance(brokers, Nodes) else None
        self._nodes: Sequence[EmbeddedBroker | Node] = (
            [brokers] if isinstance(brokers, EmbeddedBroker) else brokers.nodes
        )
        self.bootstrap_servers = brokers.bootstrap_servers
        self.deaths = 0
        """Number of times that one of them was ended."""
        self._away: list[EmbeddedBroker | Node] = []
        self._thread: threading.Thread | None = None
        self._failed: list[Exception] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._nodes)

    @property
    def busy(self) -> bool:
        """Whether a fault of theirs has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise where a broker has died by itself, or did not come back from a fault."""
        if self._failed:
            raise self._failed[0]
        for node in self._nodes:
            if node not in self._away:
                node.check()

    def wait(self) -> None:
        """Wait until no fault goes on."""
        if self._thread is not None:
            self._thread.join()

    def finish(self) -> None:
        """The same; raise where a broker did not come back."""
        self.wait()
        self.check()

    def leader(self, topic: str, partition: int) -> EmbeddedBroker | Node:
        """The broker that leads a partition (topic: full name)."""
        return self._nodes[0] if self._cluster is None else self._cluster.leader(topic, partition)

    def hurt(self, fault: Fault) -> str:
        """Do a fault of brokers, or begin it; return what is done."""
        node = self._nodes[int(fault.draw * 1e3) % self.count]
        names = f"broker {self._nodes.index(node) + 1}: " if self._cluster else ""
        match fault.kind:
            case "broker pause":
                self._go_through(lambda: self._pause(node, fault.length_s))
                return f"{names}stopped for {fault.length_s:.1f} s"
            case "two brokers":
                pair = [other for other in self._nodes if other is not node]
                self._go_through(lambda: self._restart(pair, fault.length_s))
                return f"all but {self._nodes.index(node) + 1} killed, away for {fault.length_s:.1f} s"
            case "brokers in turn":
                self._go_through(self._roll)
                return "stopped and started again, one after the other"
            case "controller change":
                assert self._cluster is not None
                node = self._cluster.controller()
                self._go_through(lambda: self._restart([node], fault.length_s))
                return f"broker {self._nodes.index(node) + 1}, the active controller, killed"
            case _:
                self._go_through(lambda: self._restart([node], fault.length_s if self._cluster else 0.0))
                return f"{names}killed and started again"

    def damage_leader(self, topic: str, partition: int, behind: int) -> tuple[Node, int] | None:
        """Flip a byte of the last batch of a partition, on the disk of its leader alone.

        Args:
            topic: Full name.
            partition: Its number.
            behind: The batch must lie at or behind this offset; waits until there is one that all replicas hold.

        Returns:
            The leader, and the offset of the batch; None where none comes.
        """
        assert self._cluster is not None
        deadline_s = time.monotonic() + BATCH_S
        while time.monotonic() < deadline_s:
            node = self._cluster.leader(topic, partition)
            base = min(last_batch(other.data_dir / "log", topic, partition) for other in self._cluster.nodes)
            if base >= behind:
                damage_batch(node.data_dir / "log", topic, partition, base)
                return node, base
            time.sleep(POLL_S)
        return None

    def repair(self, node: Node, topic: str, partition: int, met: Callable[[], bool]) -> None:
        """Once ``met``: kill the broker, wait until another leads, delete its replica, and start it again."""

        def steps() -> None:
            assert self._cluster is not None
            _until(met, MOVED_S, "the damaged batch was not read")
            time.sleep(SERVED_S)
            self._begin_end([node])
            node.kill()
            cluster = self._cluster
            _until(lambda: cluster.leader(topic, partition) is not node, MOVED_S, "no other replica leads")
            shutil.rmtree(node.data_dir / "log" / f"{topic}-{partition}")
            node.start()
            self._away.remove(node)

        self._go_through(steps)

    def _restart(self, nodes: Sequence[EmbeddedBroker | Node], away_s: float) -> None:
        self._begin_end(nodes)
        for node in nodes:
            node.kill()
        time.sleep(away_s)
        for node in nodes:
            node.start()
            if node.bootstrap_servers not in self.bootstrap_servers:
                raise BrokersFailed("another program took the broker's port while it was down; run again")
            self._away.remove(node)

    def _begin_end(self, nodes: Sequence[EmbeddedBroker | Node]) -> None:
        self._away += nodes
        self.deaths += len(nodes)

    def _roll(self) -> None:
        for node in self._nodes:
            self._begin_end([node])
            node.stop()
            node.start()
            self._away.remove(node)
            self._come_together()

    def _pause(self, node: EmbeddedBroker | Node, length_s: float) -> None:
        os.kill(node.pid, signal.SIGSTOP)
        try:
            time.sleep(length_s)
        finally:
            os.kill(node.pid, signal.SIGCONT)

    def _go_through(self, steps: Callable[[], None]) -> None:
        if self._cluster is None:
            steps()
            return

        def run() -> None:
            try:
                steps()
                self._come_together()
            except Exception as error:
                # `check` raises it.
                self._failed.append(error)

        self._thread = threading.Thread(target=run, name="brokers", daemon=True)
        self._thread.start()

    def _come_together(self) -> None:
        if self._cluster is not None:
            _until(self._cluster.whole, WHOLE_S, "the replicas are not in sync again")


def _until(holds: Callable[[], bool], longest_s: float, otherwise: str) -> None:
    if seconds_until(holds, longest_s, POLL_S) is None:
        raise BrokersFailed(f"{otherwise} after {longest_s:.0f} s")
