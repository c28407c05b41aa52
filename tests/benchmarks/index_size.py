"""The card agent's index as it grows: time of a batch, bytes on disk and of a snapshot, memory.

Run ``python -m tests.benchmarks.index_size``. Keys and values have the form of `transaction_index`:
each batch looks for transactions that are not there, writes them, and writes the run by which they are forgotten.
"""

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.engine.cards.transaction_index import RUN_AT_MOST
from pipeline.engine.partition_state.layout import DIGEST_BYTES
from pipeline.state.store import RocksStore, StoreMemory
from tests.benchmarks.forests import BUILD
from tests.benchmarks.tables import Table, as_text

BATCH: Final = 2_000
VALUE_BYTES: Final = 40
TIMED: Final = 500
"""Batches that are timed before each row."""
_MEBIBYTE: Final = 1 << 20


def rows(marks: list[int], memory_mb: int, directory: Path) -> list[dict[str, Any]]:
    """Fill a store up to each of ``marks`` entries; returns what was measured there."""
    generator = np.random.default_rng(1)
    store = RocksStore(directory / "index", memory=StoreMemory(memory_mb * _MEBIBYTE))
    found: list[dict[str, Any]] = []
    entries = runs = 0
    took_s: list[float] = []
    frozen: set[str] = set()
    try:
        for mark in marks:
            took_s.clear()
            began_s, began = time.process_time(), entries
            while entries < mark:
                digests = _texts(generator, BATCH, DIGEST_BYTES)
                values = _texts(generator, BATCH, VALUE_BYTES)
                started_s = time.monotonic()
                absent = store.get_many([b"t" + digest for digest in digests])
                store.put_many([b"t" + digest for digest in digests], values)
                for first in range(0, BATCH, RUN_AT_MOST):
                    runs += 1
                    store.put(b"d" + runs.to_bytes(12, "big"), b"".join(digests[first : first + RUN_AT_MOST]))
                store.commit()
                took_s.append(time.monotonic() - started_s)
                if any(value is not None for value in absent):
                    raise RuntimeError("the store has what was never put there")
                entries += BATCH
            cpu_us = 1e6 * (time.process_time() - began_s) / (entries - began)
            size = store.size_bytes()
            started_s = time.monotonic()
            snapshot = Path(store.freeze())
            freeze_s = time.monotonic() - started_s
            files = {path.name: path.stat().st_size for path in snapshot.iterdir()}
            new = sum(bytes_ for name, bytes_ in files.items() if name not in frozen)
            frozen = set(files)
            store.release(str(snapshot))
            last_ms = 1e3 * np.array(took_s[-TIMED:])
            found.append(
                {
                    "entries": entries,
                    "batch_p50_ms": float(np.median(last_ms)),
                    "batch_p99_ms": float(np.quantile(last_ms, 0.99)),
                    "batch_longest_ms": float(last_ms.max()),
                    "cpu_us_an_entry": cpu_us,
                    "bytes_an_entry": size / entries,
                    "new_snapshot_mib": new / _MEBIBYTE,
                    "freeze_s": freeze_s,
                    "most_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
            )
            print({name: round(value, 2) for name, value in found[-1].items()}, flush=True)
    finally:
        store.close()
    return found


def table(found: list[dict[str, Any]]) -> Table:
    """A row for each size."""
    names = tuple(found[0])
    cells = tuple((f"{row['entries']:,}", *(f"{row[name]:,.1f}" for name in names[1:])) for row in found)
    return Table("Index of transactions, batches of 2,000 that are not there", names, cells)


def _texts(generator: np.random.Generator, count: int, size: int) -> list[bytes]:
    packed = generator.bytes(count * size)
    return [packed[at : at + size] for at in range(0, len(packed), size)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", default="1,10,50,100", help="entries of each row, in millions")
    parser.add_argument("--memory-mb", type=int, default=2_048)
    given = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=BUILD, prefix="index-"))
    try:
        marks = [round(float(number) * 1_000_000) for number in given.millions.split(",")]
        print(as_text(table(rows(marks, given.memory_mb, directory))))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
