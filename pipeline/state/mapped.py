"""Columns of state in files that the operating system keeps in memory as far as they are used.

What nothing touches for long, such as the rows of events that only wait to expire, is written out and leaves memory.
The files are a place to work in, not a copy to start from: they are removed on close, and ones left by a process that
was killed are overwritten. Snapshots are what state is loaded from.
"""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.state.errors import StateRemoved


class MappedStorage:
    """Columns as files of one directory, which nothing else may use: a `pipeline.features.state_columns.Storage`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._arrays: dict[str, NDArray[Any]] = {}

    def column(self, name: str, dtype: str, items: int) -> NDArray[Any]:
        """Return the column, its file grown and mapped again.

        Room is taken at once: a page without a place on disk, found missing only when it is written out, would end the
        process without a word.

        Args:
            name: Name of the column, and of its file.
            dtype: NumPy's name of the type; the same in each call for a column.
            items: Least number of items. A column that has more stays as it is; items that it gains are zero.

        Raises:
            StateRemoved: Somebody removed the file.
            OSError: The disk has no room.
        """
        held = self._arrays.get(name)
        if held is not None and len(held) >= items:
            return held
        kind = np.dtype(dtype)
        size = max(1, items * kind.itemsize)
        if held is None:
            self._directory.mkdir(parents=True, exist_ok=True)
        try:
            # A column that is held must not begin anew as an empty file.
            flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if held is None else 0)
            descriptor = os.open(self._path(name), flags, 0o600)
        except FileNotFoundError as error:
            raise StateRemoved(self._directory) from error
        try:
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: the state needs {size} bytes for one file; free space there or give the state "
                "another directory, then start the worker again",
                str(self._path(name)),
            ) from error
        finally:
            os.close(descriptor)
        # An older mapping of the same file is let go of with the last array on it.
        array: NDArray[Any] = np.frombuffer(mapped, kind, items)
        self._arrays[name] = array
        return array

    def close(self) -> None:
        """Remove the files."""
        for name in self._arrays:
            self._path(name).unlink(missing_ok=True)
        self._arrays.clear()
        if self._directory.exists() and not any(self._directory.iterdir()):
            self._directory.rmdir()

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.column"
