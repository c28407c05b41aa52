"""Whatever sequence of deaths there is, one record alone is blamed only after it alone has killed often enough."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.session.attempts import STEP_RECORDS, Attempt, Attempts, Committed, Mark, read_mark, write_mark

PLACES = (("transactions", 0), ("labels", 0), ("transactions", 1))
MOST = 200
AFTER = 3


@dataclass
class Log:
    """Partitions with their committed offsets and marks, and who works on them."""

    ends: dict[tuple[str, int], int]
    killers: set[tuple[tuple[str, int], int]]
    committed: dict[tuple[str, int], Committed] = field(default_factory=dict)
    done: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    quarantined: list[tuple[tuple[str, int], int]] = field(default_factory=list)
    alone: dict[tuple[tuple[str, int], int], int] = field(default_factory=dict)
    """Deaths within a step of this record alone."""

    def commit(self, place: tuple[str, int], offset: int, mark: Mark) -> None:
        # As the broker keeps it.
        self.committed[place] = Committed(offset, read_mark(write_mark(mark).decode()))

    def live(self, kills: list[int], release: bool) -> bool:
        """One process; ``kills`` counts its actions until it is killed from outside. Returns whether it died."""
        actions = kills.pop() if kills else 1 << 30

        def killed() -> bool:
            nonlocal actions
            actions -= 1
            return actions < 0

        careful = Attempts(MOST)
        positions = {}
        for place, end in self.ends.items():
            committed = self.committed.get(place, Committed(0, None, known=False))
            positions[place] = committed.offset
            careful.assigned(place, committed, end)
        if killed():
            return True
        for place, (offset, attempt) in careful.unmarked.items():
            self.commit(place, offset, Mark("m", attempt=attempt))
        careful.begin_usual()
        while (step := careful.next_step(positions)) is not None:
            place, start, attempt = step
            if killed():
                return True
            self.commit(place, start, Mark("m", attempt=attempt))
            careful.begin(step)
            blamed = attempt.size == 1 and attempt.deaths >= AFTER
            if killed() or (not blamed and any((place, at) in self.killers for at in range(start, attempt.end))):
                if attempt.size == 1:
                    self.alone[place, start] = self.alone.get((place, start), 0) + 1
                return True
            if blamed:
                self.quarantined.append((place, start))
            else:
                self.done.setdefault(place, []).extend(range(start, attempt.end))
            positions[place] = attempt.end
            self.commit(place, attempt.end, Mark("c", attempt=careful.attempt_at(place, attempt.end)))
        while any(positions[place] < end for place, end in self.ends.items()):
            batch = {place: min(end, positions[place] + MOST) for place, end in self.ends.items()}
            if killed() or any(positions[place] <= at < batch[place] for place, at in self.killers):
                return True
            for place, end in batch.items():
                self.done.setdefault(place, []).extend(range(positions[place], end))
                positions[place] = end
                self.commit(place, end, Mark("c", attempt=careful.attempt_at(place, end)))
        if release:
            for place, offset in positions.items():
                self.commit(place, offset, Mark(released=True))
        return False


logs = st.builds(
    Log,
    ends=st.fixed_dictionaries({place: st.integers(0, 500) for place in PLACES}),
    killers=st.sets(st.tuples(st.sampled_from(PLACES), st.integers(0, 499)), max_size=3),
)


@given(logs, st.lists(st.integers(0, 12), max_size=30), st.booleans())
def test_every_killer_is_quarantined_alone_and_all_else_is_done_once(log: Log, kills: list[int], release: bool) -> None:
    log.killers = {(place, at) for place, at in log.killers if at < log.ends[place]}
    lives = 0
    while log.live(kills, release):
        lives += 1
        assert lives < 200, "nobody gets on"
    for place, end in log.ends.items():
        lost = {at for source, at in log.quarantined if source == place}
        assert sorted([*log.done.get(place, []), *lost]) == list(range(end))
    assert len(log.quarantined) == len(set(log.quarantined))
    assert log.killers <= set(log.quarantined)
    for blamed in log.quarantined:
        assert log.alone[blamed] >= AFTER


@given(logs, st.lists(st.integers(0, 12), min_size=1, max_size=30))
def test_kills_quarantine_nothing_unless_three_in_a_row_meet_the_same_record_alone(log: Log, kills: list[int]) -> None:
    log.killers = set()
    while log.live(kills, release=False):
        pass
    assert all(log.alone[at] >= AFTER for at in log.quarantined)


def test_a_killer_is_found_within_six_deaths() -> None:
    place = PLACES[0]
    log = Log({place: 10_000}, {(place, 7 * MOST + 100)})
    deaths = 0
    while log.live([], release=True):
        deaths += 1
    assert deaths == 1 + 1 + 1 + AFTER
    assert log.quarantined == [(place, 7 * MOST + 100)]


def test_a_killer_behind_a_release_is_found_too() -> None:
    """Nobody has committed since the release, whose mark would stay beside the offset for ever."""
    place = PLACES[0]
    log = Log({place: 8}, {(place, 7)}, {place: Committed(7, Mark(released=True))})
    deaths = 0
    while log.live([], release=True):
        deaths += 1
        assert deaths < 20, "nobody gets on"
    assert deaths == 1 + 1 + AFTER
    assert log.quarantined == [(place, 7)]


def test_a_released_partition_and_foreign_metadata_ask_for_a_mark_and_no_care() -> None:
    metadata = ["", "-", "reset by hand", '{"v":2,"released":false}', '{"v":1,"attempt":{"end":-1}}', "[" * 4_000]
    for mark in (Mark(released=True), *map(read_mark, metadata)):
        careful = Attempts(MOST)
        assert careful.assigned(PLACES[0], Committed(5, mark), 10) is None
        assert careful.unmarked == {PLACES[0]: (5, None)}
        careful.begin_usual()
        assert not careful.active
    careful = Attempts(MOST)
    assert careful.assigned(PLACES[0], Committed(10, Mark("c")), 10) is None
    assert careful.assigned(PLACES[1], Committed(9, Mark("c", attempt=Attempt(8))), 10) is None
    assert careful.unmarked == {PLACES[0]: (10, None), PLACES[1]: (9, None)}
    careful.begin_usual()
    assert not careful.active


def test_a_commit_that_moves_nothing_ends_no_attempt() -> None:
    careful = Attempts(MOST)
    careful.assigned(PLACES[0], Committed(5, Mark("c")), 10)
    careful.begin_usual()
    assert careful.attempt_at(PLACES[0], 5) == Attempt(10)
    assert careful.attempt_at(PLACES[0], 6) is None
    careful.forget(PLACES[0])
    assert careful.attempt_at(PLACES[0], 5) is None


def test_steps_get_smaller_with_each_death() -> None:
    careful, place = Attempts(MOST), PLACES[0]
    assert careful.assigned(place, Committed(5, Mark("c")), 1_000) == Attempt(5 + MOST)
    assert careful.assigned(place, Committed(5, Mark("c", attempt=Attempt(205))), 1_000) == Attempt(205, STEP_RECORDS)
    step = careful.next_step({place: 5})
    assert step is not None
    assert step.attempt == Attempt(5 + STEP_RECORDS, STEP_RECORDS)
    died = Attempts(MOST)
    assert died.assigned(place, Committed(5, Mark("m", attempt=step.attempt)), 1_000) == Attempt(step.attempt.end, 1)
    step = died.next_step({place: 5})
    assert step is not None
    assert step.attempt == Attempt(6, 1)
    again = Attempts(MOST)
    assert again.assigned(place, Committed(5, Mark("m", attempt=step.attempt)), 1_000) == Attempt(6, 1, 1)
