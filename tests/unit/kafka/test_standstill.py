"""A partition is suspected once its log goes on and its position has not moved for long, as far as anybody looked."""

import pytest

from pipeline.kafka.damage import standstill
from pipeline.kafka.damage.standstill import LOOK_S, MOST_STALL_S, STALL_S, Standstills
from pipeline.kafka.records.batch import Partition

PARTITION = ("transactions", 1)
OTHER = ("transactions", 2)


class Clock:
    """Time that passes only here."""

    now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


class Reader:
    """Looks once a second at partitions of a client."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.standstills = clock, Standstills()
        self.positions: dict[Partition, int] = {PARTITION: 17}
        self.known = {PARTITION: (17, 20), OTHER: (0, 0)}

    def suspected_s(self, seconds: int) -> list[int]:
        """Seconds from now at which the partition is suspected."""
        found = []
        for second in range(1, seconds + 1):
            self.clock.now_s += LOOK_S
            assert self.standstills.due()
            if PARTITION in self.standstills.suspects(self.positions, self.known.__getitem__):
                found.append(second)
            assert not self.standstills.due()
        return found


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    clock = Clock()
    monkeypatch.setattr(standstill, "time", clock)
    return Reader(clock)


def test_what_stands_still_is_suspected_again_and_again_ever_more_rarely(reader: Reader) -> None:
    first, second, third, *_ = found = reader.suspected_s(600)
    assert first == STALL_S + 1
    assert (second - first, third - second) == (2 * STALL_S, 4 * STALL_S)
    assert found[-1] - found[-2] == MOST_STALL_S


def test_what_moves_is_never_suspected(reader: Reader) -> None:
    for _ in range(10):
        assert reader.suspected_s(int(STALL_S)) == []
        reader.positions[PARTITION] += 1


@pytest.mark.parametrize("known", [(17, 17), (20, 20), (-1001, -1001), (-1001, 17)])
def test_a_log_that_does_not_go_on_is_not_suspected(reader: Reader, known: tuple[int, int]) -> None:
    reader.known[PARTITION] = known
    assert reader.suspected_s(60) == []


def test_a_position_that_the_client_has_not_counts_as_the_reader_s(reader: Reader) -> None:
    reader.known[PARTITION] = (-1001, 20)
    assert reader.suspected_s(int(STALL_S) + 1) == [STALL_S + 1]


def test_time_in_which_nobody_looked_does_not_count(reader: Reader) -> None:
    assert reader.suspected_s(1) == []
    reader.clock.now_s += 3_600
    assert reader.suspected_s(2) == []


def test_a_partition_that_was_given_up_begins_anew(reader: Reader) -> None:
    reader.suspected_s(int(STALL_S))
    reader.positions = {OTHER: 0}
    reader.suspected_s(1)
    reader.positions = {PARTITION: 17}
    assert reader.suspected_s(int(STALL_S)) == []
