"""Bytes that the windows need for an entity, a transaction and a label: state is grown, and the differences counted.

Run ``python -m tests.benchmarks.state_size``. What it prints is what ``docs/sizing.md`` calculates with.
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.features.timelines.layout import META
from pipeline.state.mapped import MappedStorage
from tests.helpers.keys import keys

DAY_US = 86_400_000_000
START_US = 1_700_000_000_000_000
DAYS = 80
"""Twice the horizon: what is measured at the end is a state in which as much leaves as enters."""
LABELLED = 0.1


class Size(NamedTuple):
    """What windows hold, and the bytes of their tables."""

    entities: int
    events: int
    live_events: int
    labels: int
    slots_bytes: int
    chunks_bytes: int
    rows_bytes: int
    index_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return self.slots_bytes + self.chunks_bytes + self.rows_bytes + self.index_bytes


def measured(windows: CardWindows | MerchantWindows, live_events: int) -> Size:
    """The size of ``windows``, of which ``live_events`` lie within the horizon."""
    meta, words = windows.state.meta, {name: words for name, (words, _) in windows._words.items()}
    return Size(
        windows.entities,
        windows.events,
        live_events,
        windows.labels,
        8 * int(meta[META.slots_end]) * words["slots"],
        8
        * (
            int(meta[META.chunks_end]) * words["chunks"]
            + int(meta[META.label_chunks_end]) * words.get("label_chunks", 0)
        ),
        8 * (int(meta[META.events_end]) * words["events"] + int(meta[META.labels_end]) * words.get("labels", 0)),
        windows.state.slot_index.nbytes,
    )


def days(entities: int, a_day: float, seed: int) -> Iterator[tuple[list[str], np.ndarray, np.random.Generator]]:
    """Each day's entities and times of their transactions, at ``a_day`` of them for each entity."""
    generator = np.random.default_rng(seed)
    for day in range(DAYS):
        n = int(generator.poisson(entities * a_day))
        names = [f"entity-{number}" for number in generator.integers(0, entities, n)]
        yield names, START_US + day * DAY_US + np.sort(generator.integers(0, DAY_US, n)), generator


def cards(entities: int, a_day: float) -> Size:
    """Cards that make ``a_day`` transactions a day each."""
    windows, times = CardWindows(), []
    for names, time_us, generator in days(entities, a_day, 1):
        n = len(names)
        zeros = np.zeros(n)
        windows.profile(
            keys(names), keys(names), time_us, generator.integers(1, 20_000, n), np.ones(n, np.bool_), zeros, zeros
        )
        windows.commit()
        times.append(time_us)
    return measured(windows, int((np.concatenate(times) > windows.stream_time_us - 37 * DAY_US).sum()))


def merchants(entities: int, a_day: float, labelled: float) -> Size:
    """Merchants with ``a_day`` transactions a day each, of which a share is labelled on the next day."""
    windows, times = MerchantWindows(), []
    before: tuple[list[str], np.ndarray] = ([], np.empty(0, np.int64))
    for names, time_us, generator in days(entities, a_day, 2):
        chosen = np.flatnonzero(generator.random(len(before[0])) < labelled)
        n, m = len(names), len(chosen)
        windows.profile(
            np.r_[np.zeros(n, np.uint8), np.ones(m, np.uint8)],
            keys(names + [before[0][k] for k in chosen]),
            generator.integers(0, 2**63, n + m).astype(np.uint64),
            np.r_[time_us, before[1][chosen]],
            generator.integers(1, 20_000, n + m),
            np.r_[np.ones(n, np.bool_), np.zeros(m, np.bool_)],
            np.zeros(n + m, np.bool_),
            (generator.random(n + m) < 0.1).astype(np.int8),
            np.full(n + m, time_us[0], np.int64),
        )
        windows.commit()
        times.append(time_us)
        before = (names, time_us)
    return measured(windows, int((np.concatenate(times) > windows.stream_time_us - 37 * DAY_US).sum()))


def touched(entities: int, a_day: float) -> dict[str, float]:
    """Share of the mapped files' memory that the next hour and the next day of cards' transactions touch (Linux)."""
    shares = {}
    with tempfile.TemporaryDirectory() as directory:
        windows = CardWindows(MappedStorage(Path(directory)))
        for day, (names, time_us, _) in enumerate(days(entities, a_day, 1)):
            parts = [slice(None)]
            if day == DAYS - 1:
                hour = int(np.searchsorted(time_us, time_us[0] + DAY_US // 24))
                parts = [slice(0, hour), slice(hour, None)]
                Path("/proc/self/clear_refs").write_text("1")
            for what, part in zip(("hour", "day"), parts, strict=False):
                n = len(names[part])
                on, zeros = np.ones(n, np.bool_), np.zeros(n)
                who = keys(names[part])
                windows.profile(who, who, time_us[part], np.full(n, 100), on, zeros, zeros)
                windows.commit()
                shares[what] = referenced(directory) / windows.nbytes
        windows.close()
    return shares


def referenced(directory: str) -> int:
    """Bytes of the files below ``directory`` that were touched since the marks were cleared."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            inside = directory in line
        elif inside and line.startswith("Referenced:"):
            total += 1024 * int(line.split()[1])
    return total


def main() -> None:
    """Print a table."""
    print("entities, transactions a day each | bytes/live transaction: rows, chunks | bytes/entity | held/live")
    for what, size in (
        *((f"cards 20,000 x {rate}", cards(20_000, rate)) for rate in (0.1, 0.5, 2.0)),
        *(
            (f"merchants {count:,} x {rate}", merchants(count, rate, 0.0))
            for count, rate in ((10_000, 4.0), (200, 200.0))
        ),
    ):
        print(
            f"{what:24} | {size.rows_bytes / size.live_events:6.1f} {size.chunks_bytes / size.live_events:6.1f} "
            f"| {(size.slots_bytes + size.index_bytes) / size.entities:6.1f} | {size.events / size.live_events:.2f} "
            f"| {size.total_bytes / 2**20:.0f} MiB"
        )
    without, with_labels = merchants(1_000, 40.0, 0.0), merchants(1_000, 40.0, LABELLED)
    each = (with_labels.total_bytes - without.total_bytes) / with_labels.labels
    shares = ", ".join(f"{share:.0%} in a {what}" for what, share in touched(20_000, 2.0).items())
    print(f"touched of the files of 20,000 cards x 2.0: {shares}")
    print(f"a label: {each:.0f} bytes ({with_labels.labels:,} of them)")


if __name__ == "__main__":
    main()
