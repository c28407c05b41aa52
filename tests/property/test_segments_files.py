"""Segments in files hold what segments in memory hold, whatever is done, and after they were saved and restored."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.partition_state.decision_segments import DecisionReference, MemorySegments
from pipeline.state.segments import FileSegments
from schemas.times import US_PER_DAY
from tests.helpers.memory_columns import MemoryColumn
from tests.reference.identities import transaction_digest

DIGESTS = [transaction_digest("c", f"t{number}") for number in range(60)]

rows = st.lists(st.tuples(st.integers(0, 59), st.integers(-3, 3), st.binary(max_size=30)), max_size=50)
steps = st.one_of(
    st.tuples(st.just("add"), rows),
    st.tuples(st.sampled_from(["commit", "commit", "rollback", "day", "restore", "dump"]), st.just([])),
)


class Files:
    """Segments on disk with what snapshots have of them."""

    def __init__(self, home: Path, sealed_bytes: int) -> None:
        self._home, self._sealed_bytes, self._restores = home, sealed_bytes, 0
        self.segments = FileSegments(home / "0", sealed_bytes=sealed_bytes)
        self._columns: dict[str, MemoryColumn] = {}

    def dump(self) -> Any:
        """Save what changed, as a writer of snapshots does; the first time that is everything."""
        dump = self.segments.dump(full=not self._columns)
        for name, pages in dump.columns.items():
            before = self._columns[name].pages if name in self._columns else {}
            self._columns[name] = MemoryColumn(pages.dtype, pages.items, {**before, **pages.changed})
        return dump.state

    def restore(self) -> None:
        state = self.dump()
        self._restores += 1
        saved = self._home / f"saved-{self._restores}"
        saved.mkdir()
        self.segments.link(str(saved))
        self.segments.close()
        self.segments = FileSegments(self._home / str(self._restores), saved, sealed_bytes=self._sealed_bytes)
        self.segments.load(state, self._columns)


def held(segments: FileSegments | MemorySegments, day: int) -> dict[bytes, tuple[DecisionReference, bytes]]:
    found = {
        digest: entry for digest, entry in segments.find(DIGESTS).items() if entry.event_time_us >= day * US_PER_DAY
    }
    decisions = segments.read(list(found.values()))
    return {digest: (entry, decision) for (digest, entry), decision in zip(found.items(), decisions, strict=True)}


@settings(max_examples=80)
@given(st.lists(steps, max_size=40), st.sampled_from([1, 600, 1 << 20]))
def test_files_hold_what_memory_holds(done: list[tuple[str, list[Any]]], sealed_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        files, memory, day = Files(Path(home), sealed_bytes), MemorySegments(), 100
        for name, added in done:
            if name == "add":
                batch = batch_of(added, day)
                assert files.segments.add(*batch) == memory.add(*batch)
            elif name == "day":
                day += 1
                files.segments.forget_before(day - 2)
                memory.forget_before(day - 2)
            elif name in ("commit", "rollback"):
                for state in (files.segments, memory):
                    getattr(state, name)()
            else:
                # What is not committed is not saved.
                for state in (files.segments, memory):
                    state.rollback()
                if name == "dump":
                    files.dump()
                else:
                    files.restore()
            assert held(files.segments, day) == held(memory, day)
        assert files.segments.checksum(day) == memory.checksum(day)
        files.segments.close()


def batch_of(added: Sequence[tuple[int, int, bytes]], day: int) -> tuple[list[bytes], list[int], list[bytes]]:
    return (
        [DIGESTS[number] for number, _, _ in added],
        [(day + days) * US_PER_DAY + number for number, days, _ in added],
        [decision for _, _, decision in added],
    )


@pytest.mark.parametrize("seed", range(3))
def test_files_do_not_depend_on_batches(seed: int, tmp_path: Path) -> None:
    """Nor do they on batches that were rolled back: the log alone decides what is written."""
    random = np.random.default_rng(seed)
    log = [(int(random.integers(60)), 0, random.bytes(int(random.integers(40)))) for _ in range(900)]
    whole, cut = (FileSegments(tmp_path / name, sealed_bytes=1 << 20) for name in ("whole", "cut"))
    whole.add(*batch_of(log, 100))
    whole.commit()
    first = 0
    while first < len(log):
        cut.add(*batch_of(log[first : first + int(random.integers(1, 200))], 100))
        cut.rollback()
        end = first + int(random.integers(1, 90))
        cut.add(*batch_of(log[first:end], 100))
        cut.commit()
        first = end
    assert (tmp_path / "whole" / "open").read_bytes() == (tmp_path / "cut" / "open").read_bytes()
    assert whole.checksum(0) == cut.checksum(0)
    for item in (whole, cut):
        item.close()
