"""An open-loop load generator, a process of its own: every transaction has a time at which it is due, fixed beforehand.

It never waits for an answer, so that a pipeline that stalls meets the same load as one that does not; and a send that
is late is still measured from when it was due, so that a stall counts for every transaction that it delayed (what Tene
calls coordinated omission is leaving those out).

Parts ``latency``, ``chain`` and ``recovery`` of ``make bench`` run it by `running_generator`.
"""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from numpy.typing import NDArray

from pipeline.demo.processes import settings_environment
from pipeline.kafka.cluster.clients import producer_config
from pipeline.settings import Settings
from tests.benchmarks.traffic import Item, read_items, write_items

TICK_NS = 1_000_000
"""What falls due within a tick is handed over together: a thread that wakes for each record would take a core."""
LINGER_MS = 0.5
"""Long enough that what a tick hands over to a partition leaves as one batch, short beside what is measured. Without
any, each record would be a request of its own, and the broker's time would go on those."""
START_AHEAD_NS = 300_000_000
FULL_QUEUE_POLL_S = 0.001
STARTED = "started"
ITEMS, SENT = "items", "sent.npz"


def schedule(count: int, rate: float) -> NDArray[np.int64]:
    """When each of ``count`` transactions is due, in nanoseconds from the first, at equal distances.

    >>> schedule(3, 1000).tolist()
    [0, 1000000, 2000000]
    """
    due_ns: NDArray[np.int64] = np.rint(np.arange(count) * (1e9 / rate)).astype(np.int64)
    return due_ns


def due_times(items: Sequence[Item], transactions_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """When each item is due: a label together with the transaction that stands before it."""
    is_transaction = np.array([item.topic == "transactions" for item in items])
    place = np.maximum(np.cumsum(is_transaction) - 1, 0)
    due_ns: NDArray[np.int64] = transactions_ns[place]
    return due_ns


def send(
    items: Sequence[Item],
    due_ns: NDArray[np.int64],
    produce: Callable[[Item], None],
    poll: Callable[[], object],
    *,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> NDArray[np.int64]:
    """Hand each item over when it is due (``due_ns`` ascending, on ``clock``); returns when each was.

    An item that falls due while earlier ones are being handed over is late, and nothing else changes.
    """
    sent_ns = np.empty(len(items), np.int64)
    done = 0
    while done < len(items):
        now_ns = clock()
        due = int(np.searchsorted(due_ns, now_ns, side="right"))
        if due > done:
            for number in range(done, due):
                produce(items[number])
            sent_ns[done:due] = now_ns
            done = due
            poll()
            if done == len(items):
                break
        # To the end of the tick in which the next one falls due, so that sleeps stay few at low rates too.
        wake_ns = max(int(due_ns[done]), now_ns - now_ns % TICK_NS + TICK_NS)
        ahead_ns = wake_ns - clock()
        if ahead_ns > 0:
            sleep(ahead_ns / 1e9)
    return sent_ns


class Refused(RuntimeError):
    """A record was not written, so that the run measures something else."""


class KafkaSink:
    """Where the generator hands records over."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._failure: str | None = None
        self._names = {"transactions": settings.topic("transactions"), "labels": settings.topic("labels")}
        self._producer = Producer(
            {
                **producer_config(bootstrap, settings=settings, overrides={"linger.ms": LINGER_MS}),
                "delivery.report.only.error": True,
                "on_delivery": self._on_delivery,
            }
        )
        # Connections and partitions are known before the first record is due.
        for name in self._names.values():
            self._producer.list_topics(name, timeout=30)

    def produce(self, item: Item) -> None:
        """Queue a record; waits while the client's queue is full, which makes it and those behind it late."""
        while True:
            try:
                self._producer.produce(self._names[item.topic], item.value, item.key)
                return
            except BufferError:
                self._producer.poll(FULL_QUEUE_POLL_S)

    def poll(self) -> None:
        """Serve reports; raises `Refused`."""
        self._producer.poll(0)
        if self._failure is not None:
            raise Refused(self._failure)

    def flush(self) -> None:
        """Wait until all is written; raises `Refused`."""
        left = self._producer.flush(60)
        self.poll()
        if left:
            raise Refused(f"{left} records were not acknowledged within a minute; look at the broker's log")

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = f"a record for {message.topic()} was not written: {error.str()}"


@contextmanager
def running_generator(
    settings: Settings, directory: Path, items: Sequence[Item], rate: float
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A generator at work on ``items``, and when its first transaction is due (monotonic ns).

    Leaves in `SENT` of ``directory`` when each transaction was due and sent. One that is not through is ended.
    """
    directory.mkdir(exist_ok=True)
    write_items(directory / ITEMS, list(items))
    command = [sys.executable, "-m", "tests.benchmarks.open_loop", str(directory), str(rate)]
    environment = {**os.environ, **settings_environment(settings)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as generator:
        assert generator.stdout is not None
        word, _, started = generator.stdout.readline().partition(" ")
        if word != STARTED:
            raise RuntimeError("the generator did not start; it says why above")
        try:
            yield generator, int(started)
        finally:
            generator.terminate()


def finish(generator: subprocess.Popen[str]) -> None:
    """Wait until all is sent."""
    if generator.wait() != 0:
        raise RuntimeError("the generator failed; it says why above")


def main(directory: Path, rate: float) -> None:
    """Send a file's items at a rate, and save when each transaction was due and when it was sent."""
    settings = Settings()
    items = read_items(directory / ITEMS)
    chosen = np.array([item.topic == "transactions" for item in items])
    offsets_ns = schedule(int(chosen.sum()), rate)
    sink = KafkaSink(settings.kafka_bootstrap_servers or "", settings)
    # What is prepared lives until the end: looking at it again and again would delay sends.
    gc.collect()
    gc.disable()
    started_ns = time.monotonic_ns() + START_AHEAD_NS
    print(STARTED, started_ns, flush=True)
    sent_ns = send(items, started_ns + due_times(items, offsets_ns), sink.produce, sink.poll)
    sink.flush()
    np.savez(
        directory / SENT,
        number=np.array([item.number for item in items], np.int64)[chosen],
        scheduled_ns=started_ns + offsets_ns,
        sent_ns=sent_ns[chosen],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
