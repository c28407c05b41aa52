"""A consumer of topics that others write: it inflates no batch beyond bounds, and tells of each that it cannot read.

librdkafka decompresses what it fetches before anybody can look at it. Here a batch is looked at first: its header, its
checksum, what it expands to and what its records claim. Requests run in an event loop on the reader's own thread, so
that answers wait in the connection, and not in memory, while the reader works.
"""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import takewhile
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection, collect_hosts
from aiokafka.errors import KafkaError as ConnectionFailed
from aiokafka.protocol.offset import OffsetRequest
from confluent_kafka import KafkaError

from pipeline.kafka.cluster.client_log import errors_log
from pipeline.kafka.cluster.clients import BOOTSTRAP, FETCH_BYTES
from pipeline.kafka.cluster.connection_security import security_of
from pipeline.kafka.cluster.retries import PASSING_ERRORS
from pipeline.kafka.damage.batch_records import BatchRecords, damaged, open_batch
from pipeline.kafka.records.batch import Partition, UnreadableRange, partitions_text
from pipeline.kafka.records.message_records import Item, ReadError
from pipeline.kafka.records.raw_fetch import Fetched, Wanted, connect, describe, fetch
from pipeline.kafka.records.record_batches import split_batches, visible_batches

log = logging.getLogger(__name__)

ANSWER_BYTES: Final = 1024 * 1024
"""Bytes that are asked of a partition at a time."""
HELD_BYTES: Final = 16 * 1024 * 1024
"""Answers that wait to be taken, as they came; no more are asked for."""
OPEN_BYTES: Final = 16 * 1024 * 1024
"""Inflated batches that wait to be taken; one more may be as large by itself."""
SHARE: Final = 64
"""Fewest records that a partition with as many gives at a time."""
_BACKOFF_S, _MOST_BACKOFF_S = 0.05, 1.0
_LOOK_S: Final = 0.05
_TURNS: Final = 8
"""Turns of the event loop in which an answer that lies in the connection is read."""
_CLOSE_S: Final = 1.0
_OUTSIDE_S: Final = 30.0
"""Time after which a log that ends before the offset to read from is believed to."""
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
        self.damaged, following = [*batches[len(intact) :], None, None][:2]
        # Its header may be damaged too: no batch reaches beyond the next one, or beyond the end of the log.
        is_known = following is not None and following.is_intact
        self.damaged_end = following.base_offset if following is not None and is_known else fetched.stable_end


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
        self.reports: list[ReadError] = []
        self.is_halted = self.is_behind = False
        """It stands still until a seek; its log holds records behind those that came."""
        self.ready_s = self.backoff_s = 0.0
        self.outside_s = 0.0
        """Since when the log does not hold the offset; 0 where it does."""
        self.told_end = -1

    def is_fetchable(self, now_s: float) -> bool:
        """Return whether to ask for more."""
        return not self.is_halted and self.held < ANSWER_BYTES and self.ready_s <= now_s

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
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._hosts = [(host, port) for host, port, _ in collect_hosts(str(config[BOOTSTRAP]))]
        self._security = security_of(config)
        self._wait_ms, self._min_bytes = int(config["fetch.wait.max.ms"]), int(config.get("fetch.min.bytes", 1))
        most = int(config["max.partition.fetch.bytes"])
        self._most_bytes = ANSWER_BYTES if most == FETCH_BYTES else most
        self._isolation = _COMMITTED if config["isolation.level"] == "read_committed" else _UNCOMMITTED
        self._from_earliest = config["auto.offset.reset"] == "earliest"
        self._reports_ends = bool(config.get("enable.partition.eof"))
        self._readings: dict[Partition, _Reading] = {}
        self._paused: set[Partition] = set()
        self._ends: dict[Partition, int] = {}
        self._made_loop: asyncio.AbstractEventLoop | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._connections: dict[tuple[str, int], AIOKafkaConnection] = {}
        self._addresses: dict[int, tuple[str, int]] = {}
        self._leaders: dict[Partition, int] = {}
        self._tasks: dict[int | None, asyncio.Task[None]] = {}
        """Requests under way: one for each broker, and one for the leaders."""
        self._connecting: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stop: asyncio.Handle
        """Stops the loop, where no request's end does."""
        self._error: BaseException | None = None
        """The error of a request that no retry mends."""
        self._described_s = self._described_backoff_s = 0.0

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        if self._made_loop is None:
            self._made_loop = asyncio.new_event_loop()
        return self._made_loop

    def seek(self, partition: Partition, offset: int) -> None:
        """Read a partition from ``offset`` on, whether or not it was read before; 0: from the log's beginning."""
        self._readings[partition] = _Reading(offset)

    def drop(self, partitions: Iterable[Partition]) -> None:
        """Read these partitions no more."""
        for partition in partitions:
            self._readings.pop(partition, None)
            self._paused.discard(partition)

    def pause(self, partitions: Collection[Partition]) -> None:
        """Neither fetch nor return anything of these partitions until they are resumed or dropped."""
        self._paused.update(partitions)

    def resume(self, partitions: Collection[Partition]) -> None:
        """Go on with these partitions."""
        self._paused.difference_update(partitions)

    def log_end(self, partition: Partition) -> int:
        """Return the end of the log as a broker last named it; -1 if none has."""
        return self._ends.get(partition, -1)

    def take(self, most: int) -> list[Item]:
        """Return up to ``most`` records, and what is to be said of partitions, of what has come.

        Behind a `UnreadableRange` or an error the partition stands still until `seek`, but for an end of the log.
        """
        items: list[Item] = []
        ready = [
            partition
            for partition, reading in self._readings.items()
            if reading.is_ready() and partition not in self._paused
        ]
        opened = 0
        for number, partition in enumerate(ready):
            reading = self._readings[partition]
            left = max(SHARE, (most - len(items)) // (len(ready) - number))
            while left > 0 and len(items) < most and opened <= OPEN_BYTES:
                if reading.records is None:
                    if self._open_bytes() > OPEN_BYTES or not self._open(partition, reading, items):
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
            self._stop = self._loop.call_later(min(max(left_s, 0.0), _LOOK_S), self._loop.stop)
            self._turn()
            if left_s <= 0 or any(
                reading.is_ready() for partition, reading in self._readings.items() if partition not in self._paused
            ):
                return

    def prefetch(self) -> None:
        """Take in what has come meanwhile, and ask for what logs are known to hold behind it; wait for nothing.

        Where a log has been read to its end, a request would be answered with the first record that comes: whoever
        works for a while gets more of them at once by asking afterwards.
        """
        self._ask(known=True)
        if self._tasks:
            self._stop_after(_TURNS)
            self._turn()

    def _stop_after(self, turns: int) -> None:
        self._stop = self._loop.call_soon(*((self._stop_after, turns - 1) if turns else (self._loop.stop,)))

    def _turn(self) -> None:
        """Run the loop until ``_stop`` stops it, or a request ends."""
        try:
            self._run(self._loop.run_forever)
        finally:
            self._stop.cancel()
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
        ending += [connection.close() for connection in self._connections.values()]
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
                opened = open_batch(answer.batches.popleft(), partition, reading.position)
                if isinstance(opened, UnreadableRange):
                    items.append(opened)
                    self._halt(reading)
                    return False
                if len(opened):
                    reading.records = opened
                    return True
            elif answer.damaged is not None:
                items.append(damaged(answer.damaged, partition, max(reading.position, answer.end), answer.damaged_end))
                self._halt(reading)
                return False
            else:
                reading.answers.popleft()
                reading.held -= answer.size
                reading.position = max(reading.position, answer.end)
        items += reading.reports
        reading.reports.clear()
        return False

    @staticmethod
    def _halt(reading: _Reading) -> None:
        reading.is_halted, reading.held, reading.records = True, 0, None
        reading.answers.clear()

    # --- Requests ----------------------------------------------------------------------------------------------

    def _ask(self, *, known: bool = False) -> None:
        """Send what is to be asked now, of each broker one thing at a time; ``known``: of logs that hold more alone."""
        now_s = time.monotonic()
        if sum(reading.held for reading in self._readings.values()) >= HELD_BYTES:
            return
        wanted: dict[int, dict[Partition, _Reading]] = {}
        for partition, reading in self._readings.items():
            if partition in self._paused or not reading.is_fetchable(now_s) or (known and not reading.is_behind):
                continue
            if (leader := self._leaders.get(partition)) is not None:
                wanted.setdefault(leader, {})[partition] = reading
            elif None not in self._tasks and now_s >= self._described_s:
                self._begin(None, self._describe())
        for broker, readings in wanted.items():
            if broker not in self._tasks:
                self._begin(broker, self._fetch(broker, readings))

    def _begin(self, key: int | None, request: Any) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            if self._tasks.pop(key, None) is not None:
                self._error = self._error or task.exception()
                self._loop.stop()

        self._tasks[key] = task = self._loop.create_task(request)
        task.add_done_callback(ended)

    async def _connection(self, address: tuple[str, int]) -> AIOKafkaConnection:
        async with self._connecting[address]:
            known = self._connections.get(address)
            if known is None or not known.connected():
                known = self._connections[address] = await connect(self._security, *address)
            return known

    async def _describe(self) -> None:
        """Ask for the leaders of all partitions, of whichever broker answers."""
        topics = sorted({topic for topic, _ in self._readings})
        self._described_backoff_s = min(max(2 * self._described_backoff_s, _BACKOFF_S), _MOST_BACKOFF_S)
        for address in {*self._addresses.values(), *self._hosts}:
            try:
                found = await describe(await self._connection(address), topics)
            except (OSError, ConnectionFailed, TimeoutError) as error:
                self._failed(address, error)
                continue
            self._addresses = dict(found.addresses)
            self._leaders = {partition: replicas.leader for partition, replicas in found.replicas.items()}
            if without := sorted(partition for partition in self._readings if partition not in self._leaders):
                self._complain(KafkaError.LEADER_NOT_AVAILABLE, f"no leader of {partitions_text(without)}")
            else:
                self._described_backoff_s = 0.0
            break
        self._described_s = time.monotonic() + self._described_backoff_s

    async def _fetch(self, broker: int, readings: Mapping[Partition, _Reading]) -> None:
        """Ask a broker for what comes next of the partitions that it leads."""
        wanted = [
            Wanted(partition, reading.fetched, max(self._most_bytes, reading.most_bytes))
            for partition, reading in readings.items()
        ]
        if (address := self._addresses.get(broker)) is None:
            for partition in readings:
                self._leaders.pop(partition, None)
            return
        try:
            connection = await self._connection(address)
            answers = await fetch(
                connection, wanted, isolation=self._isolation, max_wait_ms=self._wait_ms,
                min_bytes=self._min_bytes, max_bytes=max(at.max_bytes for at in wanted),
            )  # fmt: skip
            for partition, fetched in answers.items():
                reading = readings[partition]
                if self._readings.get(partition) is reading:
                    await self._came(connection, partition, reading, fetched)
        except (OSError, ConnectionFailed, TimeoutError) as error:
            self._failed(address, error)
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
                reading.is_halted = answer.damaged is not None
            elif fetched.data:
                # Even the first batch is cut off: ask for the whole of it.
                reading.most_bytes = min(2 * max(self._most_bytes, reading.most_bytes), HELD_BYTES)
                reading.wait(time.monotonic())
            elif self._reports_ends and reading.fetched >= fetched.stable_end and reading.told_end != reading.fetched:
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

    def _failed(self, address: tuple[str, int], error: Exception) -> None:
        """Make another connection to a broker the next time."""
        text = str(error) or type(error).__name__
        self._complain(KafkaError._TRANSPORT, f"{address[0]}:{address[1]}: {text}")
        if (failed := self._connections.pop(address, None)) is not None:
            failed.close()

    @staticmethod
    def _complain(code: int, text: str) -> None:
        name = KafkaError(code).name()
        errors_log.warning("Kafka client: %s (%s); retrying", text, name, extra={"kafka_error": name})
