"""The Kafka session of an agent: reads batches, and commits outputs together with input offsets.

Everything here runs on the agent's own thread, rebalance callbacks included (librdkafka calls them from ``poll``), so
that no partition can be taken away while a batch of it is being worked on. ``docs/decisions/0004-exactly-once.md``
and ``0013-rollback.md`` say why each step is as it is.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from pipeline.kafka.batch import Batch, Partition, partitions_text, start_at
from pipeline.kafka.call_thread import CallThread, CallTimedOut
from pipeline.kafka.callbacks import callback
from pipeline.kafka.careful import Committed, Mark, write_mark
from pipeline.kafka.carried import carried_messages
from pipeline.kafka.clients import GroupProtocol, consumer_config, late_fetch_config, log_error, record_of
from pipeline.kafka.internal import OnRefused, not_counted
from pipeline.kafka.odd_offsets import OddOffsets
from pipeline.kafka.offsets import CommittedOffsets
from pipeline.kafka.restore import restore_partition
from pipeline.kafka.retries import Retries
from pipeline.kafka.state_handler import StateHandler
from pipeline.kafka.steps import CarefulReading, restore_tuning
from pipeline.kafka.transactions import (
    CALL_TIMEOUT_S,
    MOST_ABORTS,
    Aborted,
    OutputTooLarge,
    SessionError,
    Stopped,
    TransactionalProducers,
    Unknown,
    end_agent,
)
from pipeline.kafka.unreadable import UNREADABLE
from pipeline.kafka.unreadable_batches import STALLED, UnreadableBatches
from pipeline.settings import Settings
from schemas.messages import Progress
from schemas.records import Output, Record
from schemas.topics import PROGRESS, Topic, has_order

log = logging.getLogger(__name__)

LAST_WAIT_S: Final = 4.0
"""Longest wait for a broker once the worker ends: what was not committed is read again."""
HOLD_ASK_S: Final = 1.0
"""Longest wait for the end of a partition that is on hold."""
MOST_REJOINS: Final = 5
REJOINS_S: Final = 120.0
"""A group that is joined anew more often, without such a time or a commit in between, is an operator's business."""
REJOIN_S: Final = 0.5
"""Time before a group is joined anew for the first time; twice as long before each further time."""


_encode = msgspec.json.Encoder().encode
_Failed = dict[Partition, tuple[int, KafkaError]]
"""Offset that the first error about a batch names, and the error, by partition."""


class Session:
    """Consumer and producer of one agent; delivery as `pipeline.settings.Settings.delivery` says."""

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        agent: str,
        topics: Sequence[Topic],
        handler: StateHandler,
        *,
        waiting: Callable[[], None] = lambda: None,
        renewed: Callable[[], None] = lambda: None,
        on_refused: OnRefused = not_counted,
        group_protocol: GroupProtocol = "consumer",
        late_ms: int = 0,
        producers: int = 1,
    ) -> None:
        """Join nothing yet.

        ``late_ms``: how long brokers may collect records before they answer, in milliseconds; ``producers``: how many
        take turns (`pipeline.kafka.transactions.TransactionalProducers`).
        """
        self._on_refused = on_refused
        self._settings, self._handler, self.agent = settings, handler, agent
        self._names = {settings.topic(topic.name): topic for topic in topics}
        self._bootstrap, self._report_waiting = bootstrap, waiting
        self._stopping = threading.Event()
        self._retries = Retries(agent, self._stopping, self._waiting)
        self._offsets = CommittedOffsets(bootstrap, settings, agent, topics, self._retries, on_refused)
        self._stopped_s = math.inf
        self._classic = group_protocol == "classic"
        # Where a batch starts is always said; an offset that is no longer there must not be passed over silently.
        self._consumer_config = consumer_config(
            bootstrap,
            settings.topic(agent),
            settings=settings,
            overrides={"auto.offset.reset": "error"},
            protocol=group_protocol,
        )
        # Of this client alone: who probes a partition wants an answer at once.
        self._fetch = late_fetch_config(late_ms, settings)
        self._consumer, self._fatal = self._new_client()
        self._producers = producers
        self._unreadable = UnreadableBatches(self._consumer_config, agent)
        self._odd = OddOffsets(self._consumer_config, settings.inputs, self._waiting)
        self._transactions = TransactionalProducers(
            bootstrap,
            settings,
            agent,
            stopping=self._stopping,
            waiting=self._waiting,
            renewed=renewed,
            marks=has_order(topics),
            producers=producers,
        )
        # Where each partition that is held has been read up to. A record below it, or of a partition that is not held,
        # was fetched before a rebalance or an abort that happened while its batch was being formed.
        self._positions: dict[Partition, int] = {}
        self._carried = carried_messages(topics, settings.batch_max_records)
        self._committed: dict[Partition, int] = {}
        """Next offset of each partition's committed state; ``_positions`` may be ahead by a batch."""
        self._progress: dict[int, int] = {}
        self._assigned: set[Partition] = set()
        self._careful = CarefulReading(bootstrap, settings, agent, self._retries)
        self._paused = False
        """True while all that is held is paused for careful reading."""
        self._on_hold = False
        """True while nothing is read because the agent must not work."""
        self._refusals = self._rejoins = 0
        self._rejoined_s = -math.inf

    def start(self) -> None:
        """Fence earlier holders of the transactional ids and join the group."""
        self._transactions.start()
        self._subscribe()

    @property
    def assigned(self) -> list[Partition]:
        """Partitions held now, as (topic on the cluster, number)."""
        return sorted(self._positions)

    @property
    def committed(self) -> Mapping[Partition, int]:
        """Offsets behind what has entered the committed state of each partition held."""
        return self._committed

    def poll(self, timeout_s: float) -> Batch | None:
        """The next batch, formed now: one record awaited for up to ``timeout_s``, then whatever is there.

        A batch is bounded by rows and by bytes; what exceeds it is carried over to the next one.
        """
        if self._on_hold:
            self._on_hold = False
            if not self._careful.plan.active:
                self._resume()
        if self._paused:
            return self._poll_carefully(timeout_s)
        if (unreadable := self._unreadable_batch()) is not None:
            return unreadable
        self._fetch_messages(timeout_s)
        if self._fatal:
            self._rejoin(self._fatal[0])
            return None
        messages = self._carried.take()
        if not messages:
            return None
        # Read before the records are looked at: a rebalance in between would have been served by the calls above.
        metadata = self._consumer.consumer_group_metadata()
        order = list(self._names)
        read, failed = self._read(messages)
        resumed = self._believe(read)
        by_partition = sorted(read.items(), key=lambda item: (item[0][1], order.index(item[0][0])))
        starts = {partition: records[0].offset for partition, records in by_partition}
        ends = {partition: records[-1].offset + 1 for partition, records in by_partition}
        self._positions.update(ends)
        self._unreadable.succeeded(ends)
        for partition, (offset, error) in failed.items():
            if partition not in resumed:
                self._retry(partition, offset, error)
        for partition, offset in resumed.items():
            self._seek(partition, offset)
        records = [record for _, part in by_partition for record in part]
        return Batch(records, metadata, starts, ends) if records else None

    def hold(self, timeout_s: float) -> Batch | None:
        """Read nothing for up to ``timeout_s``, but stay in the group; the next `poll` reads on where it stood.

        Returns:
            None: there is no batch.
        """
        if not self._on_hold:
            self._on_hold = True
            self._pause()
        # Serves rebalances alone: a record that was fetched before the pause is read again.
        self._consumer.poll(timeout_s)
        if self._fatal:
            self._rejoin(self._fatal[0])
        return None

    def rest(self, until_s: float) -> None:
        """Wait until ``until_s`` of the monotonic clock, or until the worker ends; the client fetches meanwhile."""
        if (rest_s := until_s - time.monotonic()) > 0:
            self._stopping.wait(rest_s)

    def empty_batch(self) -> Batch:
        """A batch of no records, for outputs that no input asks for.

        Its offsets are those of the committed state, which moves nothing: with offsets in it the group refuses the
        transaction of a worker that has lost its partitions without having heard of it.
        """
        return Batch([], self._consumer.consumer_group_metadata(), ends=dict(self._committed))

    def commit(self, batch: Batch, outputs: Sequence[Output]) -> None:
        """Write ``outputs`` and the batch's offsets: both or, under exactly-once, neither; then commit the state.

        1. In one transaction: the outputs, a record of the input ranges and the processing config, the offsets.
        2. Committed: the state is committed.
        3. Aborted: the state is taken back, reading goes back to the batch's start, and ``Aborted`` is raised.
        4. Nobody says which (a broker that died, a fence): a new producer ends the old transaction one way or the
           other, and the marks beside the group's committed offsets show which.

        ``OutputTooLarge`` leaves the state taken back and the position behind the batch: who gets it tries a part of
        the batch, or passes the record over. Raises ``SessionError`` when this worker must end (another one has its
        name, for instance).
        """
        name = self._careful.new_name()
        attempt_at = self._careful.plan.attempt_at
        marks = {at: (offset, Mark(name, attempt=attempt_at(at, offset))) for at, offset in batch.ends.items()}
        try:
            self._write([*outputs, *self._markers(batch)], marks, batch.group_metadata)
        except Unknown as reason:
            # One mark of ours is enough: other members may have gone on from there in other partitions since. An equal
            # offset of theirs is none: they may have read the same records in other batches.
            found = self._offsets.read(self._consumer, batch.ends).values()
            if not any(at.mark is not None and at.mark.commit == name for at in found):
                self.rewind(batch)
                raise Aborted(str(reason)) from reason
            log.warning("%s: %s; the transaction was committed", self.agent, reason)
        except OutputTooLarge:
            self._handler.rollback(batch.partitions)
            raise
        except (Aborted, KafkaException) as error:
            self.rewind(batch)
            if isinstance(error, Aborted):
                raise
            self._refusals += 1
            if error.args[0].fatal() or self._refusals > MOST_ABORTS:
                raise SessionError(f"agent {self.agent}: {error.args[0].str()} ({error.args[0].name()})") from error
            raise Aborted(error.args[0].str()) from error
        else:
            self._progress.update(self._transactions.marked())
        self._refusals = self._rejoins = 0
        self._handler.commit(batch.partitions)
        self._committed.update(batch.ends)
        self._careful.end_step()

    def _write(
        self, outputs: Sequence[Output], marks: Mapping[Partition, tuple[int, Mark]], group_metadata: Any
    ) -> None:
        """Write outputs and offsets with their marks; in one transaction under exactly-once."""
        offsets = [
            TopicPartition(*partition, offset, write_mark(mark).decode()) for partition, (offset, mark) in marks.items()
        ]
        if self._transactions.exactly_once:
            self._transactions.commit(outputs, offsets, group_metadata)
            return
        self._transactions.write(outputs)
        if offsets:
            self._retries.call("commit", lambda: self._consumer.commit(offsets=offsets, asynchronous=False))

    def rewind(self, batch: Batch) -> None:
        """Take back what ``batch`` did to the state, and read it again from its start."""
        self._careful.end_step()
        self._handler.rollback(batch.partitions)
        for partition, offset in batch.starts.items():
            # Not forwards: a part of the same batch that stands before this one may have been taken back already.
            if offset < self._positions.get(partition, -1):
                self._seek(partition, offset)

    @property
    def progress(self) -> Mapping[int, int]:
        """Offset in ``progress`` behind the marker of the last committed batch, by partition number.

        Not its end of now: another member, which holds the partition by then, may have written on.
        """
        return self._progress

    def lag(self) -> dict[Partition, int]:
        """Records between the position of each assigned partition and its end.

        The end is from the client's cache. It does not move while nothing is fetched: on hold a broker is asked.
        """
        lags = {}
        for (topic, partition), position in self._positions.items():
            at = TopicPartition(topic, partition)
            _, high = self._consumer.get_watermark_offsets(at, cached=True)
            if self._on_hold:
                # One that does not answer is reported by whoever watches brokers.
                with suppress(KafkaException):
                    _, high = self._consumer.get_watermark_offsets(at, timeout=HOLD_ASK_S)
            if high >= 0:
                lags[topic, partition] = max(0, high - position)
        return lags

    def stop(self) -> None:
        """No longer repeat calls that fail, nor wait for long; may be called from another thread."""
        self._stopped_s = min(self._stopped_s, time.monotonic())
        self._stopping.set()

    def close(self, *, release: bool = True) -> None:
        """Leave the group. An unfinished transaction is aborted by the broker, or by this id's next holder.

        Args:
            release: Whether the partitions are given up in order. Else their next holder looks for a record of which
                this process has died.
        """
        self.stop()
        self._careful.end_step()
        if release:
            self._release({number for _, number in self._committed})
        self._committed.clear()
        self._unreadable.close()
        self._odd.close()
        self._transactions.close()
        self._leave(self._consumer)

    # --- After a death -----------------------------------------------------------------------------------------

    def _poll_carefully(self, timeout_s: float) -> Batch | None:
        """The next step of careful reading (``docs/decisions/0032-deaths.md``); reads on as usual behind the last."""
        # Serves rebalances alone: a record that was fetched before the pause is read again.
        self._consumer.poll(0)
        if self._fatal:
            self._rejoin(self._fatal[0])
            return None
        metadata = self._consumer.consumer_group_metadata()

        def write(marks: Mapping[Partition, tuple[int, Mark]]) -> None:
            self._write([], marks, metadata)

        try:
            batch = self._careful.poll(self._positions, metadata, write, timeout_s)
        except (Aborted, Unknown, KafkaException) as reason:
            log.warning("%s: a mark is not committed yet: %s", self.agent, reason)
            return None
        if not self._careful.plan.active:
            self._resume()
        return batch

    def _pause(self) -> None:
        if self._careful.plan.active:
            self._paused = True
        if self._paused or self._on_hold:
            self._consumer.pause([TopicPartition(*partition) for partition in self._assigned])

    def _resume(self) -> None:
        """Read on as usual, but for partitions that are paused while the end of an unreadable batch is searched."""
        partitions = [partition for partition in self._positions if not self._unreadable.pauses(partition)]
        # In this order: a client whose partitions are all paused notices a resume up to a second later, a seek at once.
        self._consumer.resume([TopicPartition(*partition) for partition in partitions])
        for partition in partitions:
            self._seek(partition, self._positions[partition])
        self._paused = False

    def _release(self, numbers: Collection[int]) -> None:
        """Say beside the committed offsets of partitions that they are given up in order."""
        marks = {
            partition: (offset, Mark(released=True))
            for partition, offset in self._committed.items()
            if partition[1] in numbers and (offset > 0 or self._careful.plan.attempt_at(partition, offset) is not None)
        }
        if not marks or not self._transactions.reachable:
            return
        try:
            self._write([], marks, self._consumer.consumer_group_metadata())
        except (Aborted, Unknown, SessionError, KafkaException) as error:
            # Their next holder is careful for nothing.
            log.warning("%s: partitions are given up without a mark: %s", self.agent, error)

    # --- Reading -----------------------------------------------------------------------------------------------

    def _fetch_messages(self, timeout_s: float) -> None:
        """Take messages from the client until a batch is full. It serves rebalances meanwhile, which drop some."""
        first = self._consumer.poll(0 if self._carried else timeout_s)
        if first is None:
            return
        self._carried.add([first])
        while (wanted := self._carried.wanted()) > 0:
            more = self._consumer.consume(wanted, 0)
            self._carried.add(more)
            if len(more) < wanted:
                return

    def _read(self, messages: Iterable[Message]) -> tuple[dict[Partition, list[Record]], _Failed]:
        """Return the records to process, by partition, and the fetches that failed; other errors are looked at."""
        read: dict[Partition, list[Record]] = {}
        failed: _Failed = {}
        topic, number, expected = "", -1, math.inf
        records: list[Record] = []
        for message in messages:
            error = message.error()
            if error is not None:
                at = (message.topic(), message.partition())
                if error.code() in UNREADABLE and at in self._positions:
                    failed.setdefault(at, (message.offset(), error))
                    number = -1
                elif at not in failed:
                    self._look_at(message, error)
                continue
            # Records come in runs of one partition, which is looked up once for each run, and not for each record.
            if message.partition() != number or message.topic() != topic:
                partition = topic, number = message.topic(), message.partition()
                records = read.setdefault(partition, [])
                expected = records[-1].offset + 1 if records else self._positions.get(partition, math.inf)
                # What the client makes of a damaged batch's remains is nothing to be believed.
                expected = math.inf if partition in failed else expected
            record = record_of(message, topic)
            if record.offset >= expected:
                expected = record.offset + 1
                records.append(record)
        return {partition: records for partition, records in read.items() if records}, failed

    def _believe(self, read: dict[Partition, list[Record]]) -> dict[Partition, int]:
        """Drop from ``read`` what may hide other records; return where to read such partitions again."""
        resumed: dict[Partition, int] = {}
        for partition in [partition for partition in read if partition[0] in self._odd.topics]:
            records = read[partition]
            first = records[0]
            content = first.timestamp_ms, first.key, first.value
            reach = self._odd.check(
                partition, self._positions[partition], [record.offset for record in records], content
            )
            if reach is None:
                continue
            read[partition] = [record for record in records if record.offset < reach.position]
            if not read[partition]:
                del read[partition]
            resumed[partition] = reach.position
            if reach.resume > reach.position:
                self._unreadable.found(partition, reach.position, reach.resume)
        return resumed

    def _retry(self, partition: Partition, offset: int, error: KafkaError) -> None:
        """Fetch again what could not be read, or leave the partition alone while the end of it is searched for."""
        position = self._positions[partition]
        start = max(position, offset)
        if self._unreadable.failed(partition, start, error):
            self._consumer.pause([TopicPartition(*partition)])
        self._seek(partition, start)

    def _unreadable_batch(self) -> Batch | None:
        """A batch without records that passes over a range which cannot be read, once its end is known."""
        self._unreadable.look(self._consumer, self._positions)
        if (found := self._unreadable.pop_found()) is None or found.partition not in self._positions:
            return None
        partition, position = found.partition, self._positions[found.partition]
        if found.error == STALLED and found.start == found.end:
            # It waits for something else, and was not paused.
            return None
        self._consumer.resume([TopicPartition(*partition)])
        # It can be read after all; or the records before it were not committed and are read again, as it will be then.
        is_void = found.start == found.end or position != found.start
        self._seek(partition, position if is_void else found.end)
        if is_void:
            return None
        metadata = self._consumer.consumer_group_metadata()
        return Batch([], metadata, {partition: found.start}, {partition: found.end}, unreadable=found)

    def _look_at(self, message: Message, error: KafkaError) -> None:
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            partition = (message.topic(), message.partition())
            position = self._positions.get(partition, message.offset())
            if message.offset() != position and (self._unreadable.fails(partition) or partition[0] in self._odd.topics):
                # Behind a damaged batch the client went on anywhere, or where a record claimed to be, and says so once
                # it was called back.
                self._seek(partition, position)
                return
            raise SessionError(
                f"agent {self.agent}: {message.topic()} partition {message.partition()} no longer holds the offset to "
                "read from: its records were deleted before they were read. Check the topic's retention; what can be "
                "had back must be restored. To go on without it: start once with "
                "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS=true"
            )
        # As a message's error it bears the code alone.
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal.append(error.str())
        log.warning("%s: %s", self.agent, error.str())

    def _seek(self, partition: Partition, offset: int) -> None:
        self._positions[partition] = offset
        self._carried.drop(lambda at: at == partition)
        try:
            self._retries.call("seek", lambda: self._consumer.seek(start_at(partition, offset)))
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise
            if partition in {(held.topic, held.partition) for held in self._consumer.assignment()}:
                self._restart(partition, offset)
                return
            # The client does not hold the partition any more, which the next poll will report.
            log.warning("%s: %s partition %d is lost: %s", self.agent, *partition, error.args[0].str())
            self._positions.pop(partition, None)

    def _restart(self, partition: Partition, offset: int) -> None:
        """Read a partition again that the client has stopped reading: behind a damaged batch it found nothing."""
        if self._classic:
            at = self._positions | {partition: offset}
            positions = [start_at(held, at.get(held, 0)) for held in self._assigned]
            self._consumer.assign(positions)
        else:
            self._consumer.incremental_unassign([TopicPartition(*partition)])
            self._consumer.incremental_assign([start_at(partition, offset)])

    def _markers(self, batch: Batch) -> list[Output]:
        """Return the batch's input ranges and config, for replays; an agent of one input topic needs none."""
        if not has_order(self._names.values()):
            return []
        markers = []
        for number in sorted(batch.partitions):
            starts = {self._names[topic].name: offset for (topic, n), offset in batch.starts.items() if n == number}
            ends = {self._names[topic].name: offset for (topic, n), offset in batch.ends.items() if n == number}
            marker = Progress(
                agent=self.agent,
                starts=starts,
                ends=ends,
                config=self._handler.config,
                quarantined=[position for position in batch.quarantined if position.partition == number],
            )
            markers.append(Output(PROGRESS, self.agent.encode(), _encode(marker), partition=number))
        return markers

    def _waiting(self) -> None:
        self._report_waiting()
        if time.monotonic() - self._stopped_s > LAST_WAIT_S:
            raise Stopped(f"agent {self.agent}: the worker ends while it waits for a broker")

    # --- The group ---------------------------------------------------------------------------------------------

    def _new_client(self) -> tuple[Consumer, list[str]]:
        """A client, and where it puts the errors after which it cannot be used any more."""
        fatal: list[str] = []

        @callback
        def on_error(error: KafkaError) -> None:
            if error.fatal():
                fatal.append(error.str())
            else:
                log_error(error)

        return Consumer({**self._consumer_config, **self._fetch, "error_cb": on_error}), fatal

    def _subscribe(self) -> None:
        self._consumer.subscribe(
            list(self._names), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _rejoin(self, reason: str) -> None:
        """Join the group anew with a new client: this one met what it does not recover from by itself.

        For one, that the group does not exist, which a coordinator says that knows a part of its log only.
        """
        now_s = time.monotonic()
        self._rejoins = 1 if now_s - self._rejoined_s > REJOINS_S else self._rejoins + 1
        self._rejoined_s = now_s
        if self._rejoins > MOST_REJOINS:
            raise SessionError(f"agent {self.agent}: {reason}")
        log.warning("%s: a new client joins the group: %s", self.agent, reason)
        old, (self._consumer, self._fatal) = self._consumer, self._new_client()
        self._give_up({number for _, number in self._assigned})
        self._assigned.clear()
        self._leave(old)
        self._waiting()
        self._stopping.wait(REJOIN_S * 2 ** (self._rejoins - 1))
        self._subscribe()

    def _leave(self, consumer: Consumer) -> None:
        call_thread = CallThread(self.agent, self._report_waiting)
        try:
            call_thread.call("leaving the group", consumer.close, LAST_WAIT_S)
        except CallTimedOut as error:
            # The group learns of it when the session times out.
            log.warning("%s", error)
        finally:
            call_thread.end()

    def _give_up(self, numbers: Collection[int]) -> None:
        self._carried.drop(lambda at: at[1] in numbers)
        for offsets in (self._positions, self._committed):
            for partition in [partition for partition in offsets if partition[1] in numbers]:
                del offsets[partition]
                self._careful.plan.forget(partition)
        self._unreadable.forget(numbers)
        for number in numbers:
            self._progress.pop(number, None)
            self._handler.forget(number)

    # --- Partitions that come and go ---------------------------------------------------------------------------

    @callback
    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is not self._consumer:
            # One that was given up and is being closed.
            self._unassign(consumer, partitions)
            return
        came = [(partition.topic, partition.partition) for partition in partitions]
        self._assigned.update(came)
        numbers = {number for _, number in came}
        whole = sorted(n for n in numbers if all((topic, n) in self._assigned for topic in self._names))
        offsets: dict[Partition, int] = {}
        if whole:
            self._end_left_open([(topic, number) for number in whole for topic in self._names])
            # Asked first: what the last holder committed with these offsets can be read once they are known.
            committed = self._offsets.read(consumer, [(topic, number) for number in whole for topic in self._names])
            self._handler.assigning(self._waiting_or_stop)
            for number in whole:
                offsets |= self._restore(number, {(topic, number): committed[topic, number] for topic in self._names})
            self._careful.assigned(committed)
        positions = [start_at(partition, offsets.get(partition, 0)) for partition in came]
        log.info("%s: assigned %s", self.agent, partitions_text(came))
        if self._classic:
            consumer.assign(positions)
        else:
            consumer.incremental_assign(positions)
        # The other topics of a number may come later, in a further call: until then nothing of it is read.
        if incomplete := [TopicPartition(*partition) for partition in came if partition[1] not in whole]:
            consumer.pause(incomplete)
        # All of them, however they came: librdkafka remembers a pause of a partition that was taken away since.
        if whole and not self._careful.plan.active:
            consumer.resume([TopicPartition(topic, number) for number in whole for topic in self._names])
        earlier = [(topic, number) for number in whole for topic in self._names if (topic, number) not in came]
        for partition in earlier:
            # Paused since it came, and perhaps read ahead since. After the resume, which alone is noticed late.
            self._seek(partition, offsets[partition])
        self._positions.update(offsets)
        self._committed.update(offsets)
        self._pause()

    def _end_left_open(self, partitions: Collection[Partition]) -> None:
        """Abort the transactions of workers that died with partitions.

        Until they end, offsets are not known, and readers of the outputs get no further. Brokers would wait for
        ``transaction.timeout.ms``. A holder that lives has lost these partitions, and makes a new producer.
        """
        if not self._transactions.exactly_once:
            return
        for instance in sorted(self._offsets.dead_holders(partitions)):
            log.warning("%s: instance %s died with partitions; its transactions are aborted", self.agent, instance)
            settings = self._settings.model_copy(update={"instance": instance})
            deadline_s = time.monotonic() + CALL_TIMEOUT_S

            def waiting(until_s: float = deadline_s) -> None:
                self._waiting_or_stop()
                if time.monotonic() > until_s:
                    raise SessionError("no transaction coordinator answers")

            try:
                end_agent(self._bootstrap, settings, self.agent, self._producers, self._stopping, waiting)
            except Stopped:
                raise
            except SessionError as error:
                # By now the brokers do it by themselves.
                log.warning("%s: the transactions of instance %s are waited for: %s", self.agent, instance, error)

    @callback
    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is self._consumer:
            self._release({partition.partition for partition in partitions})
        log.info("%s: gave up %s", self.agent, partitions_text([(lost.topic, lost.partition) for lost in partitions]))
        self._take_away(consumer, partitions)

    @callback
    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.warning(
            "%s: lost %s",
            self.agent,
            partitions_text([(partition.topic, partition.partition) for partition in partitions]),
        )
        self._take_away(consumer, partitions)

    def _take_away(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = {partition.partition for partition in partitions}
        left: list[TopicPartition] = []
        # A client that was given up reports it while it is closed; what it held may be its successor's by then.
        if consumer is self._consumer:
            self._assigned -= {(partition.topic, partition.partition) for partition in partitions}
            left = [TopicPartition(*partition) for partition in self._assigned if partition[1] in numbers]
            self._give_up(numbers)
        if left and not self._classic:
            consumer.pause(left)
        self._unassign(consumer, partitions)

    def _unassign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._classic:
            consumer.unassign()
        else:
            consumer.incremental_unassign(partitions)

    def _restore(self, number: int, marked: Mapping[Partition, Committed]) -> dict[Partition, int]:
        """Bring a partition's state up to what is committed; returns where reading goes on."""
        committed = {partition: at.offset for partition, at in marked.items()}
        try:
            done = restore_partition(
                self._bootstrap,
                self._settings,
                self.agent,
                number,
                committed,
                self._handler,
                self._waiting_or_stop,
                self._on_refused,
                restore_tuning(marked.values()),
            )
        except BaseException:
            self._handler.forget(number)
            raise
        self._progress[number] = done.progress
        self._handler.restored(number, done.records)
        positions = {}
        for (topic, _), offset in committed.items():
            first = done.first[topic]
            if offset < first:
                log.warning(
                    "%s: %s partition %d: offsets %d to %d were deleted before they were read and are passed over, as "
                    "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS says; unset it for the next start",
                    self.agent, topic, number, offset, first - 1,
                )  # fmt: skip
            positions[topic, number] = max(offset, first)
        return positions

    def _waiting_or_stop(self) -> None:
        if self._stopping.is_set():
            raise Stopped(f"agent {self.agent}: the worker ends while state is being restored")
        self._waiting()
