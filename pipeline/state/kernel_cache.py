"""Numba's cache of compiled kernels, where an installation ships one: a copy for each state of the code.

Numba looks at the file of a function alone. A change of a module that a compiled one imports needs another cache, and a
volume that outlives an image would keep the old one.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("agents", "pipeline", "schemas")
SHIPPED: Final = Path(sys.prefix) / "share" / "fraud-pipeline" / "kernels"
"""Written by ``fraud-pipeline compile`` when an image is built; Numba needs a directory that it may write to."""
VARIABLE: Final = "NUMBA_CACHE_DIR"


def code_digest() -> str:
    """Return the digest of this release's code."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


def use_shipped_kernels(shipped: Path = SHIPPED) -> None:
    """Let Numba, which is not imported yet, use a copy of the shipped cache below ``NUMBA_CACHE_DIR``.

    Nothing changes where none is shipped, or where the variable is not set.
    """
    cache = os.environ.get(VARIABLE)
    if cache is None or not shipped.is_dir() or Path(cache) == shipped:
        return
    name = code_digest()
    own = Path(cache) if Path(cache).name == name else Path(cache) / name
    if not own.is_dir():
        own.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: several processes may begin at once.
        with tempfile.TemporaryDirectory(dir=own.parent) as directory:
            copy = shutil.copytree(shipped, Path(directory) / name)
            try:
                copy.rename(own)
            except OSError:
                if not own.is_dir():
                    raise
    os.environ[VARIABLE] = str(own)
