"""Files and names that outlast a power cut."""

import os
import tempfile
from pathlib import Path


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file; its content is on disk when this returns, its name once `flush_directory` has returned."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_directory(directory: Path) -> None:
    """Make names that were created or renamed in ``directory`` last."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that readers see all of it or the one before; it lasts when this returns."""
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    flush_directory(path.parent)
