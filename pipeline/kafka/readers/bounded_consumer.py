"""The reader of record batches: it inflates none beyond bounds, and reports each that it cannot read.

librdkafka decompresses what it fetches before anybody can look at it. Here a batch is looked at first: its header, its
checksum, what it expands to and what its records claim. Requests run in an event loop on the reader's own thread, so
that answers wait in the connection, and not in memory, while the reader works.
"""

import asyncio
import logging
import selectors
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import takewhile
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.offset import OffsetRequest
from confluent_kafka import KafkaError

from pipeline.kafka.cluster.clients import FETCH_BYTES
from pipeline.kafka.cluster.retries import PASSING_ERRORS
from pipeline.kafka.records.batch import Item, Partition, ReadError, UnreadableRange, partitions_text
from pipeline.kafka.records.batch_records import BOUNDS, MOST_HEADERS, BatchBounds, BatchRecords, open_batch
from pipeline.kafka.records.damaged_batch import FETCHES, EndUnknown, examine
from pipeline.kafka.records.raw_fetch import UNANSWERED, Connections, Fetched, FetchUnanswered, Wanted, complain, fetch
from pipeline.kafka.records.record_batches import split_batches, visible_batches

log = logging.getLogger(__name__)

HELD_BYTES: Final = 16 * 1024 * 1024
"""Answers that wait to be taken, as they came; no more are asked for."""
SHARE: Final = 64
"""Fewest records that a partition with as many gives at a time."""
_BACKOFF_S, _MOST_BACKOFF_S = 0.05, 1.0
_LOOK_S: Final = 0.05
_TURNS: Final = 8
"""Turns of the event loop in which an answer that lies in the connection is read."""
_CLOSE_S: Final = 1.0
_OUTSIDE_S: Final = 30.0
"""Time after which a log that ends before the offset to read from is believed to."""
AGAIN_S: Final = 5.0
"""Time after which a damaged batch is examined again."""
_EARLIEST: Final = -2
_COMMITTED, _UNCOMMITTED = 1, 0
_MOVED: Final = PASSING_ERRORS | {
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.KAFKA_STORAGE_ERROR,
}
"""Answers of a broker that leads the partition no more, or not yet."""


class _Answer:
    """An answer about one partition: batches with records for this reader, up to the first damaged one."""

    def __init__(self, fetched: Fetched) -> None:
        self.size = len(fetched.data)
        batches = list(split_batches(fetched.data))
        intact = list(takewhile(lambda batch: batch.is_intact, batches))
        self.batches = deque(visible_batches(intact, fetched.aborted))
        self.end = intact[-1].end if intact else 0
        """Offset behind the last intact one."""
        self.damaged = next(iter(batches[len(intact) :]), None)


class _Reading:
    """A partition that is read from an offset on; a seek makes another one."""

    def __init__(self, offset: int) -> None:
        self.position = self.fetched = offset
        """Offsets behind what was taken, and behind what came."""
        self.answers: deque[_Answer] = deque()
        self.records: BatchRecords | None = None
        self.held = 0
        self.most_bytes = 0
        """Bytes to ask for; 0: as usual."""
        self.reports: list[ReadError | UnreadableRange] = []
        self.is_halted = self.is_behind = self.is_damaged = False
        """It stands still until a seek; its log holds records behind those that came; it waits for another replica."""
        self.ready_s = self.backoff_s = 0.0
        self.outside_s = 0.0
        """Since when the log does not hold the offset; 0 where it does."""
        self.told_end = -1
        self.came_damaged = -1, 0
        """Offset of the batch that last came damaged and was whole when it was examined, and how often it was."""

    def is_fetchable(self, now_s: float) -> bool:
        """Return whether to ask for more."""
        return not self.is_halted and self.held < FETCH_BYTES and self.ready_s <= now_s

    def wait(self, now_s: float) -> None:
        """Ask again later, and later still the next time."""
        self.backoff_s = min(max(2 * self.backoff_s, _BACKOFF_S), _MOST_BACKOFF_S)
        self.ready_s = now_s + self.backoff_s

    def is_ready(self) -> bool:
        """Return whether anything can be taken."""
        return bool(self.records or self.answers or self.reports)


class BoundedConsumer:
    """Reads partitions without a group; used from one thread.

    Args:
        config: Configuration of a consumer, as librdkafka has it.
        inputs: Topics that producers write to (full names), whose batches are bounded more closely.
        replica_wait_s: How long a damaged batch waits for another broker to lead that may hold it whole.
    """

    def __init__(self, config: Mapping[str, Any], inputs: Collection[str] = (), *, replica_wait_s: float = 0.0) -> None:
        self._inputs, self._replica_wait_s = inputs, replica_wait_s
        self._brokers = Connections(config)
        self._wait_ms, self._min_bytes = int(config["fetch.wait.max.ms"]), int(config.get("fetch.min.bytes", 1))
        self._most_bytes = int(config["max.partition.fetch.bytes"])
        self._most_open_bytes = int(config["queued.max.messages.kbytes"]) * 1024
        """Inflated batches that wait to be taken; one more may be as large by itself."""
        # Agents add headers of their own to those of what they forward.
        self._bounds = BatchBounds(int(config["receive.message.max.bytes"]), 2 * MOST_HEADERS)
        self._isolation = _COMMITTED if config["isolation.level"] == "read_committed" else _UNCOMMITTED
        self._from_earliest = config["auto.offset.reset"] == "earliest"
        self._reports_ends = bool(config.get("enable.partition.eof"))
        self._readings: dict[Partition, _Reading] = {}
        self._ends: dict[Partition, int] = {}
        self._made_loop: asyncio.AbstractEventLoop | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._leaders: dict[Partition, int] = {}
        self._tasks: dict[int | Partition | None, asyncio.Task[None]] = {}
        """Requests under way: one for each broker, one for each damaged batch, and one for the leaders."""
        self._stop: asyncio.Handle
        """Stops the loop, where no request's end does."""
        self._error: BaseException | None = None
        """The error of a request that no retry mends."""
        self._selector: selectors.BaseSelector
        self._is_awaiting, self._turned_s = False, 0.0
        """True once all requests wait for answers, of which none lay in a connection; and when the loop last ran."""
        self._described_s = self._described_backoff_s = 0.0

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        if self._made_loop is None:
            self._selector = selectors.DefaultSelector()
            self._made_loop = asyncio.SelectorEventLoop(self._selector)
        return self._made_loop

    def seek(self, partition: Partition, offset: int) -> None:
        """Read a partition from ``offset`` on, whether or not it was read before; 0: from the log's beginning."""
        self._forget(partition)
        self._readings[partition] = _Reading(offset)

    def drop(self, partitions: Iterable[Partition]) -> None:
        """Read these partitions no more."""
        for partition in partitions:
            self._forget(partition)

    def _forget(self, partition: Partition) -> None:
        self._readings.pop(partition, None)
        if (examination := self._tasks.pop(partition, None)) is not None:
            examination.cancel()

    def log_end(self, partition: Partition) -> int:
        """Return the end of the log as a broker last named it; -1 if none has."""
        return self._ends.get(partition, -1)

    @property
    def damaged(self) -> list[Partition]:
        """Partitions that wait for another replica to lead them, because their leader's disk has damaged a batch."""
        return [partition for partition, reading in self._readings.items() if reading.is_damaged]

    def take(self, most: int) -> list[Item]:
        """Return up to ``most`` records and reports about partitions, of what has come.

        Behind an `UnreadableRange` or an error the partition stands still until `seek`, but for an end of the log.
        """
        items: list[Item] = []
        ready = [partition for partition, reading in self._readings.items() if reading.is_ready()]
        opened = 0
        for number, partition in enumerate(ready):
            reading = self._readings[partition]
            left = max(SHARE, (most - len(items)) // (len(ready) - number))
            while left > 0 and len(items) < most and opened <= self._most_open_bytes:
                if reading.records is None:
                    if self._open_bytes() > self._most_open_bytes or not self._open(partition, reading, items):
                        break
                    opened += reading.records.size if reading.records is not None else 0
                    continue
                records = reading.records.take(min(left, most - len(items)))
                items += records
                left -= len(records)
                if not len(reading.records):
                    reading.position, reading.records = reading.records.end, None
                else:
                    reading.position = records[-1].offset + 1
            # Another one is the first next time.
            if self._readings.get(partition) is reading:
                self._readings[partition] = self._readings.pop(partition)
        return items

    def wait(self, timeout_s: float) -> None:
        """Ask brokers for more; wait up to ``timeout_s`` until something can be taken."""
        ends_s = time.monotonic() + timeout_s
        while True:
            self._ask()
            left_s = ends_s - time.monotonic()
            if left_s <= 0 and self._is_idle():
                return
            self._is_awaiting = False
            self._stop = self._loop.call_later(min(max(left_s, 0.0), _LOOK_S), self._loop.stop)
            self._turn()
            if left_s <= 0 or any(reading.is_ready() for reading in self._readings.values()):
                return

    def prefetch(self) -> None:
        """Take in what has come meanwhile, and ask for what logs are known to hold behind it; wait for nothing.

        Where a log has been read to its end, a request would be answered with the first record that comes: whoever
        works for a while gets more of them at once by asking afterwards.
        """
        self._ask(known=True)
        if self._tasks and not self._is_idle():
            self._is_awaiting = True
            self._stop_after(_TURNS)
            self._turn()

    def _is_idle(self) -> bool:
        """Return whether turns of the loop would be for nothing: nothing is to be sent, and nothing has come.

        Now and then it turns all the same: requests may have waited too long.
        """
        is_recent = time.monotonic() - self._turned_s < _LOOK_S
        return self._is_awaiting and is_recent and not self._selector.select(0)

    def _stop_after(self, turns: int) -> None:
        self._stop = self._loop.call_soon(*((self._stop_after, turns - 1) if turns else (self._loop.stop,)))

    def _turn(self) -> None:
        """Run the loop until ``_stop`` stops it, or a request ends."""
        try:
            self._run(self._loop.run_forever)
        finally:
            self._stop.cancel()
            self._turned_s = time.monotonic()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close all connections."""
        self._readings.clear()
        if self._made_loop is None:
            return
        ending: list[asyncio.Future[None]] = [*self._tasks.values()]
        self._tasks.clear()
        for task in ending:
            task.cancel()
        ending += self._brokers.close()
        if ending:
            self._run(partial(self._loop.run_until_complete, asyncio.wait(ending, timeout=_CLOSE_S)))
        self._loop.close()
        self._made_loop = None
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _run(self, requests: Callable[[], object]) -> None:
        """Run the loop for a while: elsewhere where the caller, a notebook for instance, has one of its own."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            requests()
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._thread.submit(requests).result()

    # --- What has come -----------------------------------------------------------------------------------------

    def _open_bytes(self) -> int:
        return sum(reading.records.size for reading in self._readings.values() if reading.records is not None)

    def _open(self, partition: Partition, reading: _Reading, items: list[Item]) -> bool:
        """Open the next batch of a partition; return whether there is one with records."""
        while reading.answers:
            answer = reading.answers[0]
            if answer.batches:
                bounds = BOUNDS if partition[0] in self._inputs else self._bounds
                opened = open_batch(answer.batches.popleft(), partition, reading.position, bounds)
                if isinstance(opened, UnreadableRange):
                    items.append(opened)
                    # With what came behind it, a damaged batch that is examined included.
                    self._forget(partition)
                    return False
                if len(opened):
                    reading.records = opened
                    return True
            else:
                reading.answers.popleft()
                reading.held -= answer.size
                reading.position = max(reading.position, answer.end)
        items += reading.reports
        reading.reports.clear()
        return False

    # --- Requests ----------------------------------------------------------------------------------------------

    def _ask(self, *, known: bool = False) -> None:
        """Send what is to be asked now, of each broker one thing at a time; ``known``: of logs that hold more alone."""
        now_s = time.monotonic()
        if sum(reading.held for reading in self._readings.values()) >= HELD_BYTES:
            return
        wanted: dict[int, dict[Partition, _Reading]] = {}
        for partition, reading in self._readings.items():
            if not reading.is_fetchable(now_s) or (known and not reading.is_behind):
                continue
            if (leader := self._leaders.get(partition)) is not None:
                wanted.setdefault(leader, {})[partition] = reading
            elif None not in self._tasks and now_s >= self._described_s:
                self._begin(None, self._describe())
        for broker, readings in wanted.items():
            if broker not in self._tasks:
                self._begin(broker, self._fetch(broker, readings))

    def _begin(self, key: int | Partition | None, request: Coroutine[Any, Any, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._is_awaiting = False
            if self._tasks.get(key) is task:
                del self._tasks[key]
                self._error = self._error or task.exception()
                self._loop.stop()

        self._is_awaiting = False
        self._tasks[key] = task = self._loop.create_task(request)
        task.add_done_callback(ended)

    async def _describe(self) -> None:
        """Ask for the leaders of all partitions, of whichever broker answers."""
        self._described_backoff_s = min(max(2 * self._described_backoff_s, _BACKOFF_S), _MOST_BACKOFF_S)
        try:
            found = await self._brokers.describe(sorted({topic for topic, _ in self._readings}))
        except FetchUnanswered:
            # Each broker's failure is logged.
            pass
        else:
            self._leaders = {partition: replicas.leader for partition, replicas in found.items()}
            without = sorted(partition for partition in self._readings if partition not in self._leaders)
            if waiting := [partition for partition in without if not self._is_refused(partition)]:
                code = self._brokers.refused.get(waiting[0][0], KafkaError.LEADER_NOT_AVAILABLE)
                complain(code, f"no leader of {partitions_text(waiting)}")
            if not without:
                self._described_backoff_s = 0.0
        self._described_s = time.monotonic() + self._described_backoff_s

    def _is_refused(self, partition: Partition) -> bool:
        """Return whether a broker says of a topic what does not pass, such as a missing right; then report it."""
        if (code := self._brokers.refused.get(partition[0], 0)) in {0, *PASSING_ERRORS}:
            return False
        reading = self._readings[partition]
        if not reading.is_halted:
            reading.reports.append(ReadError(partition, reading.fetched, KafkaError(code)))
        return True

    async def _fetch(self, broker: int, readings: Mapping[Partition, _Reading]) -> None:
        """Ask a broker for what comes next of the partitions that it leads."""
        wanted = [
            Wanted(partition, reading.fetched, max(self._most_bytes, reading.most_bytes))
            for partition, reading in readings.items()
        ]
        if (address := self._brokers.addresses.get(broker)) is None:
            for partition in readings:
                self._leaders.pop(partition, None)
            return
        try:
            connection = await self._brokers.to(address)
            answers = await fetch(
                connection, wanted, isolation=self._isolation, max_wait_ms=self._wait_ms,
                min_bytes=self._min_bytes, max_bytes=max(at.max_bytes for at in wanted),
            )  # fmt: skip
            for partition, fetched in answers.items():
                reading = readings[partition]
                if self._readings.get(partition) is reading:
                    await self._came(connection, partition, reading, fetched)
        except UNANSWERED as error:
            self._brokers.failed(address, error)
            for partition, reading in readings.items():
                self._leaders.pop(partition, None)
                reading.wait(time.monotonic())

    async def _came(
        self, connection: AIOKafkaConnection, partition: Partition, reading: _Reading, fetched: Fetched
    ) -> None:
        """Take in what a broker says of one partition."""
        if fetched.error == KafkaError.OFFSET_OUT_OF_RANGE:
            await self._out_of_range(connection, partition, reading)
        elif fetched.error in _MOVED:
            self._brokers.doubt()
            self._leaders.pop(partition, None)
            reading.wait(time.monotonic())
        elif fetched.error:
            reading.reports.append(ReadError(partition, reading.fetched, KafkaError(fetched.error)))
            reading.backoff_s = _MOST_BACKOFF_S
            reading.wait(time.monotonic())
        else:
            reading.backoff_s = reading.outside_s = 0.0
            self._ends[partition] = fetched.high_watermark
            answer = _Answer(fetched)
            reading.is_behind = max(answer.end, reading.fetched) < fetched.stable_end
            if answer.end or answer.damaged is not None:
                reading.answers.append(answer)
                reading.held += answer.size
                reading.fetched = max(reading.fetched, answer.end)
                if answer.damaged is not None:
                    reading.is_halted = True
                    start = max(reading.fetched, answer.damaged.base_offset)
                    self._begin(partition, self._examine(partition, reading, start))
            elif fetched.data:
                # Even the first batch is cut off: ask for the whole of it.
                reading.most_bytes = min(2 * max(self._most_bytes, reading.most_bytes), HELD_BYTES)
                reading.wait(time.monotonic())
            at_end = reading.fetched >= fetched.stable_end and not reading.is_halted
            if self._reports_ends and at_end and reading.told_end != reading.fetched:
                # Behind what came with this answer: another one would come only after the broker's longest wait.
                reading.told_end = reading.fetched
                reading.reports.append(ReadError(partition, reading.fetched, KafkaError(KafkaError._PARTITION_EOF)))

    async def _out_of_range(self, connection: AIOKafkaConnection, partition: Partition, reading: _Reading) -> None:
        """Begin where the log does, or say that it does not hold what was asked for.

        A broker that does not know yet that it leads no more may end before the offset: it is asked for a while.
        """
        topic, number = partition
        now_s = time.monotonic()
        reading.outside_s = reading.outside_s or now_s
        answer = await connection.send(OffsetRequest(-1, self._isolation, [(topic, [(number, _EARLIEST)])]))
        ((_, ((_, error, _, offset, *_),)),) = answer.topics
        if error or offset < 0 or (reading.fetched > offset and now_s - reading.outside_s < _OUTSIDE_S):
            self._leaders.pop(partition, None)
            reading.wait(time.monotonic())
        elif reading.fetched > 0 and not self._from_earliest:
            reading.is_halted = True
            reading.reports.append(ReadError(partition, reading.fetched, KafkaError(KafkaError._AUTO_OFFSET_RESET)))
        else:
            reading.fetched = reading.position = offset

    async def _examine(self, partition: Partition, reading: _Reading, start: int) -> None:
        """Report a damaged batch, or read it again where its leader holds it whole by then."""
        ends_s = time.monotonic() + self._replica_wait_s
        while True:
            try:
                found = await examine(self._brokers, partition, start)
            except (*UNANSWERED, EndUnknown, KeyError) as error:
                log.warning("%s partition %d: an unreadable batch cannot be examined yet: %r", *partition, error)
                await asyncio.sleep(AGAIN_S)
                self._read_again(partition, reading)
                return
            if found is None:
                again = self._read_again(partition, reading)
                if not reading.is_damaged:
                    _note_damaged_on_its_way(partition, again, start)
                return
            if not found.others or time.monotonic() >= ends_s:
                reading.is_damaged = False
                reading.reports.append(found)
                return
            if not reading.is_damaged:
                reading.is_damaged = True
                log.error(
                    "%s partition %d: the disk of its leader has damaged offsets %d to %d. Let a broker lead it that "
                    "may hold them whole, %s (docs/operating.md): else they are quarantined in %.0f s",
                    *partition, start, found.end - 1, " or ".join(map(str, found.others)), self._replica_wait_s,
                )  # fmt: skip
            await asyncio.sleep(AGAIN_S)

    def _read_again(self, partition: Partition, reading: _Reading) -> _Reading:
        self._readings[partition] = again = _Reading(reading.position)
        again.came_damaged = reading.came_damaged
        return again


def _note_damaged_on_its_way(partition: Partition, reading: _Reading, start: int) -> None:
    """Let a batch wait that its leader holds whole; report it after `FETCHES` times, though it is read again."""
    at, times = reading.came_damaged
    reading.came_damaged = start, times + 1 if at == start else 1
    log.warning("%s partition %d: the batch at offset %d came damaged, but is whole at its leader", *partition, start)
    if reading.came_damaged[1] >= FETCHES:
        topic, number = partition
        text = (
            f"topic {topic} partition {number} cannot be read from offset {start} on (its checksum is not that of its "
            "bytes), or only sometimes: check the network"
        )
        reading.reports.append(ReadError(partition, start, KafkaError(KafkaError._BAD_MSG, text)))
    reading.backoff_s = _MOST_BACKOFF_S
    reading.wait(time.monotonic())
