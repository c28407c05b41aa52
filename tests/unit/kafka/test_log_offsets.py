"""Questions for offsets: what no broker knows yet is asked again, and nobody waits for ever."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, Final

import pytest
from confluent_kafka import (
    OFFSET_END,
    OFFSET_INVALID,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import ConfigResource, ListOffsetsResultInfo, OffsetSpec, ResourceType

from pipeline.kafka.cluster import log_offsets
from pipeline.kafka.cluster.admin import committed_by_group
from pipeline.kafka.cluster.cluster import configs_of
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.log_offsets import (
    first_offsets,
    last_offsets,
    log_range,
    log_ranges,
    offsets_at,
    partition_numbers,
)
from pipeline.kafka.cluster.retries import Retries, may_pass, retried
from pipeline.settings import Settings

PARTITION: Final = ("t", 0)
Answer = int | KafkaError


class Cluster:
    """Answers the questions of an admin client and of a consumer, each list from its begin to its last answer."""

    def __init__(
        self, ends: list[Answer], first: Answer = 0, by_time: Answer = 0, metadata: KafkaError | None = None
    ) -> None:
        self._ends, self._first, self._by_time, self._metadata = ends, first, by_time, metadata
        self.asked = 0

    def list_topics(self, topic: str, timeout: float) -> Any:
        del timeout
        return SimpleNamespace(topics={topic: SimpleNamespace(error=self._metadata, partitions={0: None})})

    def list_offsets(self, asked: Mapping[TopicPartition, OffsetSpec], **_: object) -> dict[TopicPartition, Any]:
        ((at, spec),) = asked.items()
        future = Future[Any]()
        answer = {OffsetSpec.latest(): self._end, OffsetSpec.earliest(): lambda: self._first}.get(
            spec, lambda: self._by_time
        )()
        if isinstance(answer, KafkaError):
            future.set_exception(KafkaException(answer))
        else:
            future.set_result(ListOffsetsResultInfo(answer, -1, -1))
        return {at: future}

    def _end(self) -> Answer:
        self.asked += 1
        return self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]

    def get_watermark_offsets(self, at: TopicPartition, timeout: float) -> tuple[Answer, Answer]:
        del at, timeout
        return self._first, self._end()

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        del timeout
        end = self._end()
        assert isinstance(end, int)
        return [TopicPartition(at.topic, at.partition, end) for at in partitions]


def end(cluster: Any) -> int:
    return last_offsets(cluster, [PARTITION], IsolationLevel.READ_COMMITTED)[PARTITION]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a question be asked once, and its error be raised."""
    monkeypatch.setattr(log_offsets, "retried", lambda call, *_: retried(call, within_s=-1.0))


@pytest.mark.parametrize(
    "answer",
    [
        OFFSET_INVALID,
        OFFSET_END,
        KafkaError(KafkaError.OFFSET_NOT_AVAILABLE),
        KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION),
        KafkaError(KafkaError._TRANSPORT),
    ],
)
def test_an_end_that_no_broker_knows_yet_is_asked_for_again(answer: Answer) -> None:
    cluster = Cluster([answer, answer, 7])
    assert end(cluster) == 7
    assert cluster.asked == 3


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("offset", [OFFSET_INVALID, OFFSET_END, -2])
def test_no_begin_and_no_end_of_a_log_is_negative(offset: int) -> None:
    unknown: Any = Cluster([offset], first=offset, by_time=OFFSET_INVALID)
    asked: list[Callable[[], object]] = [
        lambda: end(unknown),
        lambda: first_offsets(unknown, [PARTITION]),
        lambda: offsets_at(unknown, [PARTITION], 5),
        lambda: log_range(unknown, PARTITION, 1.0),
        lambda: log_range(Cluster([3], first=offset), PARTITION, 1.0),  # type: ignore[arg-type]
    ]
    for ask in asked:
        with pytest.raises(KafkaException) as refused:
            ask()
        assert may_pass(refused.value.args[0])


def test_a_time_behind_all_records_stands_for_the_end() -> None:
    late: Any = Cluster([9], by_time=OFFSET_END)
    assert offsets_at(late, [PARTITION], 5) == {PARTITION: 9}
    assert offsets_at(Cluster([9], by_time=4), [PARTITION], 5) == {PARTITION: 4}  # type: ignore[arg-type]


def test_a_partition_without_a_commit_is_absent_and_any_other_negative_one_is_asked_for_again() -> None:
    group: Any = Cluster([OFFSET_INVALID])
    assert committed_by_group(group, [PARTITION]) == {}
    again = Cluster([-2, 5])
    assert committed_by_group(again, [PARTITION]) == {PARTITION: 5}  # type: ignore[arg-type]


def test_an_agent_asks_for_as_long_as_its_worker_goes_on() -> None:
    codes = [KafkaError.OFFSET_NOT_AVAILABLE, KafkaError.NOT_CONTROLLER, KafkaError._WAIT_COORD]

    def call() -> int:
        if codes:
            raise KafkaException(KafkaError(codes.pop()))
        return 3

    assert Retries("card", lambda: None).call("ends", call) == 3


def test_an_error_that_does_not_pass_is_not_asked_about_again() -> None:
    cluster = Cluster([KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), 7])
    with pytest.raises(KafkaException):
        end(cluster)
    assert cluster.asked == 1


def test_a_missing_topic_is_named_and_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = Cluster([0], metadata=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    monkeypatch.setattr(log_offsets, "admin_client", lambda *_, **__: missing)
    with pytest.raises(TopicError, match="there is no topic models, or you may not see it: create it"):
        log_ranges("nobody:1", Settings(), [("models", 0)])
    with pytest.raises(TopicError, match="there is no topic t"):
        partition_numbers(missing, "t", appear_s=0.0)


def test_configurations_are_asked_for_again_of_the_controller_of_now() -> None:
    class MovedController:
        """Names another controller to whoever asks for metadata; before, nobody answers for the one that is away."""

        renewed = False

        def list_topics(self, timeout: float) -> None:
            assert timeout > 0
            self.renewed = True

        def describe_configs(self, asked: list[ConfigResource], **_: object) -> dict[ConfigResource, Future[Any]]:
            future = Future[Any]()
            if self.renewed:
                future.set_result({"retention.ms": SimpleNamespace(name="retention.ms", value="-1")})
            else:
                future.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT, "waiting for controller")))
            return {asked[0]: future}

    client: Any = MovedController()
    assert configs_of(client, ResourceType.TOPIC, ["t"]) == ({"t": {"retention.ms": "-1"}}, [])
