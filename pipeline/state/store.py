"""Keys and values on disk, in RocksDB: a cache of what the log says, so that nothing is flushed for safety's sake."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rocksdict import (
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from pipeline.engine.partition_state.state import StoreError
from pipeline.state.errors import SnapshotError, StateRemoved, check_present

MINIMUM_BYTES: Final = 8 << 20
"""Less than this leaves RocksDB flushing all the time."""

_BLOOM_BITS: Final = 10
_MEMTABLE_BLOOM_SHARE: Final = 0.02
"""Bloom filter's share of a write buffer: about 15 bits for each of the small entries that fit in it."""
_BLOCK_BYTES: Final = 8 << 10
_ZSTANDARD_LEVEL: Final = 1
"""Compression of files at rest: no larger than at RocksDB's own level, 3, for less work."""
_LARGEST_WRITE_BUFFER_BYTES: Final = 64 << 20
_OPEN_FILES: Final = 256
WRITE_AT_ONCE: Final = 1_000
"""Keys that a write has at least, unless something must be in the database at once."""
_MANIFEST_BYTES: Final = 1 << 20


class StoreMemory:
    """Memory that all stores of a process share: read blocks, filters and indexes, and what is not yet in a file.

    ``size_bytes`` bounds all of it together, whatever the number of stores. Raises ValueError below MINIMUM_BYTES.
    """

    def __init__(self, size_bytes: int) -> None:
        if size_bytes < MINIMUM_BYTES:
            raise ValueError(
                f"stores need at least {MINIMUM_BYTES} bytes of memory, not {size_bytes}: raise the setting"
            )
        self.size_bytes = size_bytes
        self._cache = Cache(size_bytes)
        # Charged to the cache, so that the two together stay within the budget.
        self._buffers = WriteBufferManager.new_write_buffer_manager_with_cache(size_bytes // 4, False, self._cache)

    def used_bytes(self) -> int:
        """Return the bytes that are in use."""
        # What is not yet in a file is charged to the cache, and so counted with it.
        used: int = self._cache.get_usage()
        return used

    def options(self) -> Any:
        """RocksDB's options for one store that shares this memory."""
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        blocks.set_bloom_filter(_BLOOM_BITS, False)
        blocks.set_block_size(_BLOCK_BYTES)
        blocks.set_format_version(5)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_manager(self._buffers)
        options.set_write_buffer_size(min(self.size_bytes // 8, _LARGEST_WRITE_BUFFER_BYTES))
        # Most keys that are looked for are not there, and what is not yet in a table is otherwise searched for each.
        options.set_memtable_whole_key_filtering(True)
        options.set_memtable_prefix_bloom_ratio(_MEMTABLE_BLOOM_SHARE)
        options.set_level_compaction_dynamic_level_bytes(True)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_bottommost_compression_type(DBCompressionType.zstd())
        options.set_bottommost_compression_options(
            w_bits=-14, level=_ZSTANDARD_LEVEL, strategy=0, max_dict_bytes=0, enable=True
        )
        options.set_max_open_files(_OPEN_FILES)
        options.set_max_background_jobs(2)
        # One thread works on a store; the machinery for many costs each write.
        options.set_enable_write_thread_adaptive_yield(False)
        options.set_keep_log_file_num(1)
        options.set_stats_dump_period_sec(0)
        # A snapshot saves it whole each time.
        options.set_max_manifest_file_size(_MANIFEST_BYTES)
        return options


class RocksStore:
    """A store in a directory of its own, which begins empty or with files that are given.

    What was written since the last ``commit`` is held in memory, so that ``rollback`` only forgets it. One thread works
    on a store; ``release`` may be called from any. Raises StoreError where RocksDB fails.

    Args:
        directory: Emptied first: what an earlier process left there may not have been committed.
        memory: Memory that it shares with the other stores of the process.
        frozen: Directory of the files to begin with, which are moved or copied; None: it begins empty.
        write_at_once: Number of committed keys at which they are written. Fewer are held back in memory: a write costs
            RocksDB the same for one key and for a hundred, and nothing outlives the process anyway.
    """

    def __init__(
        self, directory: Path, *, memory: StoreMemory, frozen: Path | None = None, write_at_once: int = WRITE_AT_ONCE
    ) -> None:
        _remove_with_frozen(directory)
        self._directory, self._write_at_once = directory, write_at_once
        self._pending: dict[bytes, bytes | None] = {}
        self._unwritten: dict[bytes, bytes | None] = {}
        """Committed, and not yet in the database."""
        self._freezes = 0
        # RocksDB's own log of writes would only guard what a replay gives again.
        self._writing = WriteOptions()
        self._writing.disable_wal = True
        if frozen is not None:
            directory.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(frozen, directory)
        with store_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._memory = memory
            self._database = Rdict(str(directory), memory.options())

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        for held in (self._pending, self._unwritten):
            if key in held:
                return held[key]
        try:
            found: bytes | None = self._database.get(key)
        except Exception as error:  # by hand: a context manager costs as much as the look
            raise _failed(self._directory, error) from error
        return found

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of ``keys``, in order."""
        pending, unwritten = self._pending, self._unwritten
        if not pending and not unwritten:
            return self._read_many(list(keys))
        absent = [key for key in keys if key not in pending and key not in unwritten]
        read = iter(self._read_many(absent) if absent else ())
        return [pending[key] if key in pending else unwritten[key] if key in unwritten else next(read) for key in keys]

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        self._pending[key] = value

    def put_many(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Keep the value of each key."""
        self._pending.update(zip(keys, values, strict=True))

    def delete(self, key: bytes) -> None:
        """Forget a key."""
        self._pending[key] = None

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values with ``start`` <= key < ``end``, ascending; keys put meanwhile may be missing."""
        if start >= end:
            return
        # ``pending`` may change meanwhile.
        pending, unwritten = self._pending, self._unwritten
        written = iter(sorted({key for held in (pending, unwritten) for key in held if start <= key < end}))
        ahead = next(written, None)
        for key, value in self._read_range(start, end):
            while ahead is not None and ahead <= key:
                if ahead != key:
                    held = pending.get(ahead, unwritten.get(ahead))
                    if held is not None:
                        yield ahead, held
                ahead = next(written, None)
            current = pending.get(key, unwritten.get(key, value))
            if current is not None:
                yield key, current
        while ahead is not None:
            held = pending.get(ahead, unwritten.get(ahead))
            if held is not None:
                yield ahead, held
            ahead = next(written, None)

    def commit(self) -> None:
        """Write what is pending together with what was held back, all of it or nothing; or hold it back too."""
        self._unwritten.update(self._pending)
        if len(self._unwritten) >= self._write_at_once:
            self._write()
        self.rollback()

    def rollback(self) -> None:
        """Forget what is pending."""
        self._pending.clear()

    def freeze(self) -> str:
        """A directory beside the store's with its committed files, as hard links; it stays until it is released.

        Raises SnapshotError where only this cannot be done and the store goes on, StoreError where it is broken.
        """
        target = self._directory.with_name(f"{self._directory.name}.frozen-{self._freezes}")
        self._freezes += 1
        check_present(self._directory)
        self._write()
        unwritten_bytes = self._property("rocksdb.cur-size-all-mem-tables")
        free_bytes = shutil.disk_usage(self._directory).free
        # RocksDB takes no more writes once a flush has failed: it must not be tried where there is no room for it.
        if free_bytes < unwritten_bytes + 2 * _MANIFEST_BYTES:
            raise SnapshotError(
                f"{free_bytes} bytes are free beside {self._directory}, too few for the {unwritten_bytes} bytes that "
                "are not in a file yet: free space there; the next snapshot is a full one"
            )
        with store_errors(self._directory):
            self._database.flush()
        try:
            Checkpoint(self._database).create_checkpoint(str(target))
        except Exception as error:  # RocksDB's errors have no class of their own
            self.release(str(target))
            raise SnapshotError(
                f"the files of {self._directory} could not be linked to {target} ({error}): see to the room and the "
                "rights there; the next snapshot is a full one"
            ) from error
        return str(target)

    @staticmethod
    def release(frozen: str) -> None:
        """Remove what ``freeze`` returned, whether the store is open or closed; once more is no error."""
        if os.path.exists(frozen):
            shutil.rmtree(frozen)

    def close(self) -> None:
        """Close and remove the store; what is frozen stays until it is released."""
        self.rollback()
        self._unwritten.clear()
        # RocksDB cannot write what it still holds to a directory that is gone, and nobody needs it.
        with contextlib.suppress(StateRemoved), store_errors(self._directory):
            self._database.close()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory)

    def entries(self) -> int:
        """Keys in the store, as RocksDB estimates them."""
        return self._property("rocksdb.estimate-num-keys")

    def size_bytes(self) -> int:
        """Bytes of the store's files."""
        check_present(self._directory)
        size_bytes = 0
        for entry in os.scandir(self._directory):
            # RocksDB removes tables on threads of its own, also between the listing and this.
            with contextlib.suppress(FileNotFoundError):
                size_bytes += entry.stat().st_size
        return size_bytes

    def _write(self) -> None:
        if not self._unwritten:
            return
        batch = WriteBatch(raw_mode=True)
        for key, value in self._unwritten.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        with store_errors(self._directory):
            self._database.write(batch, self._writing)
        self._unwritten.clear()

    def _property(self, name: str) -> int:
        with store_errors(self._directory):
            found: int | None = self._database.property_int_value(name)
        return found or 0

    def _read_many(self, keys: list[bytes]) -> list[bytes | None]:
        try:
            found: list[bytes | None] = self._database.get(keys)
        except Exception as error:  # as in `get`
            raise _failed(self._directory, error) from error
        return found

    def _read_range(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        reading = ReadOptions()
        reading.set_iterate_upper_bound(end)
        with store_errors(self._directory):
            cursor = self._database.iter(reading)
            cursor.seek(start)
        while cursor.valid():
            yield cursor.key(), cursor.value()
            cursor.next()
        with store_errors(self._directory):
            # A cursor that meets a damaged block only ends.
            cursor.status()


@contextlib.contextmanager
def store_errors(directory: Path) -> Iterator[None]:
    """Raise errors of RocksDB, which are plain exceptions, and of the disk below it as StoreError."""
    try:
        yield
    except Exception as error:
        raise _failed(directory, error) from error


def _failed(directory: Path, error: Exception) -> StoreError:
    if not directory.exists():
        return StateRemoved(directory)
    return StoreError(
        f"the store in {directory} failed ({error}): look for room and errors on its disk; "
        "the worker rebuilds it from the log when it is started again"
    )


def _remove_with_frozen(directory: Path) -> None:
    for left in [directory, *directory.parent.glob(f"{directory.name}.frozen-*")]:
        if left.exists():
            shutil.rmtree(left)
