"""The Kafka session of an agent: reads batches, and commits outputs together with input offsets.

Everything here runs on the agent's own thread, rebalance callbacks included (librdkafka calls them from ``poll``), so
that no partition can be taken away while a batch of it is being worked on. ``docs/decisions/0004-exactly-once.md``
and ``0013-rollback.md`` say why each step is as it is.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaException, TopicPartition

from pipeline.kafka.cluster.clients import MEMBER_ID, Config, GroupProtocol, consumer_config, late_fetch_config
from pipeline.kafka.cluster.errors import Aborted, OutputTooLarge, SessionError, Unknown
from pipeline.kafka.cluster.retries import Retries
from pipeline.kafka.readers.group_client import GroupClient
from pipeline.kafka.readers.replay_reader import decode_progress
from pipeline.kafka.records.batch import Batch, Partition
from pipeline.kafka.records.internal import OnRefused, not_counted, readable_value
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.assignment import Assignment
from pipeline.kafka.session.attempts import Mark, write_mark
from pipeline.kafka.session.offsets import CommittedOffsets
from pipeline.kafka.session.state_handler import StateHandler
from pipeline.kafka.session.steps import CarefulReading
from pipeline.kafka.writers.transactional_producers import TransactionalProducers
from pipeline.kafka.writers.transactions import MOST_ABORTS, TransactionalWriter
from pipeline.settings import Settings
from schemas.messages import ProcessingConfig, Progress
from schemas.records import Output
from schemas.topics import PROGRESS, Topic, has_order

log = logging.getLogger(__name__)

MOST_REJOINS: Final = 5
REJOINS_S: Final = 120.0
"""A group that is joined anew more often, without such a time or a commit in between, is an operator's business."""
REJOIN_S: Final = 0.5
"""Time before a group is joined anew for the first time; twice as long before each further time."""


def _consumer_config(member: Member, protocol: GroupProtocol) -> Config:
    """Return the configuration of a session's client."""
    return consumer_config(
        member.bootstrap,
        member.settings.topic(member.agent),
        settings=member.settings,
        # Where a batch starts is always said; an offset that is no longer there must not be passed over silently.
        overrides={
            "auto.offset.reset": "error",
            "client.id": member.settings.kafka_config.get("client.id", MEMBER_ID),
        },
        protocol=protocol,
    )


def batch_markers(member: Member, batch: Batch, config: ProcessingConfig | None) -> list[Output]:
    """Return the batch's input ranges and config, for replays; an agent of one input topic needs none."""
    if not has_order(member.reads):
        return []

    def bare(offsets: Mapping[Partition, int], number: int) -> dict[str, int]:
        return {member.topics[topic].name: offset for (topic, n), offset in offsets.items() if n == number}

    markers = []
    for number in sorted(batch.partitions):
        marker = Progress(
            agent=member.agent,
            starts=bare(batch.starts, number),
            ends=bare(batch.ends, number),
            config=config,
            quarantined=[position for position in batch.quarantined if position.partition == number],
        )
        value = readable_value(marker, decode_progress)
        markers.append(Output(PROGRESS, member.agent.encode(), value, partition=number))
    return markers


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

        Args:
            agent: Name of the agent; with the prefix it is the name of its group.
            topics: Topics that it reads.
            handler: Owner of the state of its partitions.
            waiting: Called while a call waits for a broker; may raise.
            renewed: Called when producers are replaced.
            on_refused: Counts records of internal topics that cannot be read.
            group_protocol: ``consumer`` joins by KIP-848, ``classic`` by the older protocol.
            late_ms: How long brokers may collect records before they answer, in ms; 0: they answer at once.
            producers: How many take turns (`pipeline.kafka.writers.transactional_producers.TransactionalProducers`).
        """
        self.agent, self._handler = agent, handler
        self._member = Member(bootstrap, settings, agent, topics, producers, on_refused)
        self._retries = Retries(agent, waiting)
        self._offsets = CommittedOffsets(self._member, self._retries)
        config = _consumer_config(self._member, group_protocol)
        self._client = GroupClient(self._member, {**config, **late_fetch_config(late_ms, settings)}, self._retries)
        self._producers = TransactionalProducers(
            bootstrap,
            settings,
            agent,
            stopping=self._retries.requested,
            waiting=self._retries.last_wait,
            renewed=renewed,
            marks=has_order(topics),
            producers=producers,
        )
        self._careful = CarefulReading(self._member, self._retries)
        self._transactions = TransactionalWriter(
            settings, agent, self._producers, self._retries.requested, self._retries.last_wait,
            partial(self._offsets.commits_of_others, self._careful.session),
        )  # fmt: skip
        self._assignment = Assignment(self._client, handler, self._offsets, self._careful, self._retries, self._release)
        self._is_careful = False
        """True while steps move positions on; the client reads on from there behind the last."""
        self._on_hold = False
        """True while nothing is read because the agent must not work."""
        self._refusals = self._rejoins = 0
        self._rejoined_s = -math.inf

    def start(self) -> None:
        """Fence earlier holders of the transactional ids and join the group."""
        self._producers.start()
        self._assignment.subscribe()

    @property
    def member_id(self) -> str:
        """The id that the client joins the group with by KIP-848; it is the client's own."""
        return str(self._client.consumer.memberid())

    @property
    def assigned(self) -> list[Partition]:
        """Partitions held now, as (topic on the cluster, number)."""
        return sorted(self._client.positions)

    @property
    def committed(self) -> Mapping[Partition, int]:
        """Offsets behind what has entered the committed state of each partition held."""
        return self._assignment.offsets

    def poll(self, timeout_s: float) -> Batch | None:
        """The next batch, formed now: one record awaited for up to ``timeout_s``, then whatever is there.

        A batch is bounded by rows and by bytes; what exceeds it is carried over to the next one.
        """
        self._on_hold = False
        if self._careful.plan.active or self._is_careful:
            return self._poll_carefully(timeout_s)
        if (unreadable := self._client.unreadable_batch()) is not None:
            return unreadable
        self._client.fetch(timeout_s)
        if self._rejoined():
            return None
        # Partitions may have come meanwhile, of whose records their last holder has died.
        return None if self._careful.plan.active else self._client.fetched_batch()

    def hold(self, timeout_s: float) -> Batch | None:
        """Read nothing for up to ``timeout_s``, but stay in the group; the next `poll` reads on where it stood."""
        self._on_hold = True
        self._client.serve(timeout_s)
        self._rejoined()
        return None

    def rest(self, until_s: float) -> None:
        """Wait until ``until_s`` of the monotonic clock, or until the worker ends."""
        if (rest_s := until_s - time.monotonic()) > 0:
            self._retries.requested.wait(rest_s)

    def empty_batch(self) -> Batch:
        """A batch of no records, for outputs that no input asks for.

        Its offsets are those of the committed state, which moves nothing: with offsets in it the group refuses the
        transaction of a worker that has lost its partitions without having heard of it.
        """
        return Batch([], self._client.group_metadata(), ends=dict(self._assignment.offsets))

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
        try:
            self._write_batch(batch, outputs)
        except (Aborted, OutputTooLarge):
            raise
        except BaseException:
            # Nobody may know how it ends. Given up in order, its partitions would go back behind what it has committed.
            for partition in batch.ends:
                self._assignment.offsets.pop(partition, None)
            raise
        self._refusals = self._rejoins = 0
        # Before the state, which may fail (its directory is gone): whoever gives partitions up commits these once more.
        self._assignment.offsets.update(batch.ends)
        self._handler.commit(batch.partitions)
        self._careful.end_step()

    def _write_batch(self, batch: Batch, outputs: Sequence[Output]) -> None:
        """Write a batch's transaction; return when it is committed, and raise with the state taken back when not."""
        name = self._careful.new_name()
        attempt_at = self._careful.plan.attempt_at
        marks = {at: (offset, Mark(name, attempt=attempt_at(at, offset))) for at, offset in batch.ends.items()}
        try:
            markers = batch_markers(self._member, batch, self._handler.config)
            self._write([*outputs, *markers], marks, batch.group_metadata)
        except Unknown as reason:
            # One mark of ours is enough: other members may have gone on from there in other partitions since. An equal
            # offset of theirs is none: they may have read the same records in other batches.
            found = self._offsets.read(self._client.consumer, batch.ends).values()
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
            self._assignment.progress.update(self._transactions.marked())

    def _write(
        self, outputs: Sequence[Output], marks: Mapping[Partition, tuple[int, Mark]], group_metadata: Any
    ) -> None:
        """Write outputs and offsets with their marks; in one transaction under exactly-once."""
        offsets = []
        for (topic, number), (offset, mark) in marks.items():
            whole = msgspec.structs.replace(mark, state=self._handler.state_beside(number))
            offsets.append(TopicPartition(topic, number, offset, write_mark(whole).decode()))
        if self._transactions.exactly_once:
            self._transactions.commit(outputs, offsets, group_metadata)
            return
        self._transactions.write(outputs)
        if offsets:
            self._retries.call("commit", lambda: self._client.consumer.commit(offsets=offsets, asynchronous=False))

    def rewind(self, batch: Batch) -> None:
        """Take back what ``batch`` did to the state, and read it again from its start."""
        self._careful.end_step()
        self._handler.rollback(batch.partitions)
        for partition, offset in batch.starts.items():
            # Not forwards: a part of the same batch that stands before this one may have been taken back already.
            if offset < self._client.positions.get(partition, -1):
                self._client.seek(partition, offset)

    def halt(self, batch: Batch) -> None:
        """Take back ``batch``, and read nothing of its partitions until the group assigns them again."""
        self.rewind(batch)
        self._client.halt(batch.starts)

    @property
    def progress(self) -> Mapping[int, int]:
        """Offset in ``progress`` behind the marker of the last committed batch, by partition number.

        Not its end of now: another member, which holds the partition by then, may have written on.
        """
        return self._assignment.progress

    @property
    def damaged(self) -> list[Partition]:
        """Partitions that wait for another replica to lead them, because their leader's disk has damaged a batch."""
        return self._client.damaged

    def lag(self) -> dict[Partition, int]:
        """Records between the position of each assigned partition and its end.

        The end is as the last fetch named it. It does not move while nothing is fetched: on hold a broker is asked.
        """
        return self._client.lag(asks=self._on_hold)

    def stop(self) -> None:
        """No longer repeat calls that fail, nor wait for long; may be called from another thread."""
        self._retries.request()

    def close(self, *, release: bool = True) -> None:
        """Leave the group. An unfinished transaction is aborted by the broker, or by this id's next holder.

        Without ``release`` the next holder of the partitions looks for a record of which this process has died.
        """
        self.stop()
        self._careful.end_step()
        if release:
            self._release({number for _, number in self._assignment.offsets})
        self._assignment.offsets.clear()
        self._producers.close()
        self._client.close()

    # --- After a death -----------------------------------------------------------------------------------------

    def _poll_carefully(self, timeout_s: float) -> Batch | None:
        """The next step of careful reading (``docs/decisions/0032-deaths.md``); reads on as usual behind the last."""
        self._is_careful = True
        self._client.serve(0)
        if self._rejoined():
            return None
        metadata = self._client.group_metadata()

        def write(marks: Mapping[Partition, tuple[int, Mark]]) -> None:
            self._write([], marks, metadata)

        try:
            batch = self._careful.poll(self._client.positions, metadata, write, timeout_s)
        except (Aborted, Unknown, KafkaException) as reason:
            log.warning("%s: a mark is not committed yet: %s", self.agent, reason)
            return None
        self._is_careful = self._careful.plan.active
        if not self._is_careful:
            for partition, position in list(self._client.positions.items()):
                self._client.seek(partition, position)
        return batch

    def _release(self, numbers: Collection[int]) -> None:
        """Say beside the committed offsets of partitions that they are given up in order."""
        marks = {
            partition: (offset, Mark(released=True))
            for partition, offset in self._assignment.offsets.items()
            if partition[1] in numbers and (offset > 0 or self._careful.plan.attempt_at(partition, offset) is not None)
        }
        if not marks or not self._producers.reachable:
            return
        metadata = self._client.group_metadata()
        while metadata is not None:
            try:
                self._write([], marks, metadata)
                return
            except (Aborted, Unknown, SessionError, KafkaException) as reason:
                error = reason
                # With a member that has just left the group has another generation, which the client does not know yet.
                metadata = self._client.newer_metadata(metadata) if isinstance(error, Aborted) else None
        # Their next holder is careful for nothing.
        log.warning("%s: partitions are given up without a mark: %s", self.agent, error)

    def _rejoined(self) -> bool:
        """Join the group anew with a new client where this one met what it does not recover from; return whether so.

        For one, that the group does not exist, which a coordinator says that knows a part of its log only.
        """
        if not self._client.fatal:
            return False
        reason = self._client.fatal[0]
        now_s = time.monotonic()
        self._rejoins = 1 if now_s - self._rejoined_s > REJOINS_S else self._rejoins + 1
        self._rejoined_s = now_s
        if self._rejoins > MOST_REJOINS:
            raise SessionError(f"agent {self.agent}: {reason}")
        log.warning("%s: a new client joins the group: %s", self.agent, reason)
        old = self._client.replace()
        self._assignment.clear()
        self._client.leave(old)
        self._retries.last_wait()
        self._retries.requested.wait(REJOIN_S * 2 ** (self._rejoins - 1))
        self._assignment.subscribe()
        return True
