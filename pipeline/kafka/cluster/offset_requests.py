"""An admin client that asks for offsets as a consumer does, once a leader does not answer at once.

librdkafka's own ``list_offsets`` connects anew to a leader that is away without any backoff, some 30,000 times a second
for as long as the question waits: a dozen such clients take the processors that the broker needs for its start. A
consumer waits between its attempts.
"""

from collections.abc import Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import OFFSET_END, Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ListOffsetsResultInfo, OffsetSpec

AT_ONCE_S: Final = 1.0
"""Longest wait for librdkafka's own answer; leaders that are there take milliseconds."""


class OffsetsClient(AdminClient):  # type: ignore[misc]
    """An `AdminClient` whose ``list_offsets`` returns once it is answered, and asks for metadata anew where it fails.

    ``reader_config`` is that of the consumers that ask, which join no group.
    """

    def __init__(self, config: Mapping[str, Any], reader_config: Mapping[str, Any]) -> None:
        super().__init__(dict(config))
        self._reader_config = reader_config
        self._readers: dict[IsolationLevel, Consumer] = {}

    def list_offsets(
        self,
        topic_partition_offsets: Mapping[TopicPartition, OffsetSpec],
        *,
        isolation_level: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
        request_timeout: float,
        **_: Any,
    ) -> dict[TopicPartition, "Future[ListOffsetsResultInfo]"]:
        """Return an answer, or an error, for each partition; every future is done.

        Args:
            topic_partition_offsets: What is asked of each partition.
            isolation_level: ``READ_COMMITTED``: ends lie before the first open transaction.
            request_timeout: Longest wait for answers, in seconds.
        """
        if not self._readers:
            found: dict[TopicPartition, Future[ListOffsetsResultInfo]] = super().list_offsets(
                topic_partition_offsets, isolation_level=isolation_level, request_timeout=AT_ONCE_S
            )
            # Without an error, and below every offset, where the leader has not answered.
            if all(answer.exception() is None and answer.result().offset >= OFFSET_END for answer in found.values()):
                return found
        asked = [TopicPartition(at.topic, at.partition, spec._value) for at, spec in topic_partition_offsets.items()]
        answers: dict[TopicPartition, Future[ListOffsetsResultInfo]] = {at: Future() for at in asked}
        topics = {at.topic for at in asked}
        try:
            reader = self._reader(isolation_level, topics, request_timeout)
            offsets = reader.offsets_for_times(asked, timeout=request_timeout)
        except KafkaException as error:
            for answer in answers.values():
                answer.set_exception(error)
        else:
            for at in offsets:
                if at.error is not None:
                    answers[at].set_exception(KafkaException(at.error))
                else:
                    answers[at].set_result(ListOffsetsResultInfo(at.offset, -1, -1))
        if any(answer.exception() is not None for answer in answers.values()):
            self._ask_for_leaders(isolation_level, topics, request_timeout)
        return answers

    def _reader(self, isolation: IsolationLevel, topics: Collection[str], timeout_s: float) -> Consumer:
        if isolation not in self._readers:
            self._readers[isolation] = Consumer({**self._reader_config, "isolation.level": isolation.name.lower()})
            # A client whose first request is for offsets may wait for seconds.
            self._ask_for_leaders(isolation, topics, timeout_s)
        return self._readers[isolation]

    def _ask_for_leaders(self, isolation: IsolationLevel, topics: Collection[str], timeout_s: float) -> None:
        # librdkafka goes on asking the leaders that it knew before: for minutes where that broker is away.
        with suppress(KafkaException):
            for topic in topics:
                self._readers[isolation].list_topics(topic, timeout=timeout_s)
