"""Builds and starts the Kafka Streams peers from Python alone: no JDK, no Maven, only a Java runtime and pinned jars.

The runtime is the one that the embedded broker takes; it has no compiler, so the Eclipse compiler, itself a jar, makes
the classes. They are kept under ``build/`` by the digest of everything that they depend on. Run
``python -m tests.benchmarks.peers.kafka_streams.build`` to write the list of jars anew after a change of ``ENDPOINTS``.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.broker.jars import fetched, read_list
from pipeline.broker.java import find_java
from tests.helpers.jar_lists import write_list

ENDPOINTS: Final = (
    "org.apache.kafka:kafka-streams:4.2.2",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5",
    "io.github.metarank:lightgbm4j:4.3.0-1",
    "org.eclipse.jdt:ecj:3.46.0",
)
HERE: Final = Path(__file__).parent
JARS: Final = HERE / "jars.json"
SOURCES: Final = (HERE / "FraudScoring.java", HERE / "TwoHops.java")
"""Each has a ``main``; the second uses classes of the first."""
BUILD: Final = Path(__file__).parents[4] / "build" / "kafka_streams"
LEVEL: Final = "17"
"""Language and byte code: what the oldest runtime that ``find_java`` accepts can run."""


class BuildError(RuntimeError):
    """The Java source does not compile; the text is what the compiler said."""


def command(arguments: Sequence[str], *, main: str = "FraudScoring") -> list[str]:
    """The command line that runs the class ``main`` with ``arguments``; fetches and compiles what is missing.

    The JVM has its own defaults (heap, collector, compilers): only what silences warnings is set. Raises
    ``BrokerError`` where no Java or no jar can be had and ``BuildError`` where the source is wrong.
    """
    jars = fetched(read_list(JARS.read_text(encoding="utf-8")), BUILD / "jars")
    classes = compiled(jars, BUILD)
    return [
        str(find_java()),
        # LightGBM, RocksDB and the compressors load native libraries.
        "--enable-native-access=ALL-UNNAMED",
        "-Dlog4j2.level=WARN",
        "-cp",
        os.pathsep.join(map(str, [classes, *jars])),
        main,
        *arguments,
    ]


def compiled(jars: Sequence[Path], build_dir: Path) -> Path:
    """The directory of classes made of `SOURCES` with ``jars``; compiles when one of these has changed."""
    content = b"".join(path.read_bytes() for path in (*SOURCES, JARS))
    digest = hashlib.sha256(LEVEL.encode() + content).hexdigest()[:16]
    classes = build_dir / f"classes-{digest}"
    if classes.is_dir():
        return classes
    build_dir.mkdir(parents=True, exist_ok=True)
    (compiler,) = (jar for jar in jars if jar.name.startswith("ecj-"))
    with tempfile.TemporaryDirectory(prefix="compiling-", dir=build_dir) as scratch:
        partial = Path(scratch) / "classes"
        options = [f"-{LEVEL}", "-cp", os.pathsep.join(map(str, jars)), "-d", str(partial), "-encoding", "UTF-8"]
        compiling = [str(find_java()), "-jar", str(compiler), *options, "-warn:all-deprecation", *map(str, SOURCES)]
        ran = subprocess.run(compiling, capture_output=True, text=True, timeout=300, check=False)
        if ran.returncode != 0:
            raise BuildError(f"{HERE} does not compile (exit code {ran.returncode}):\n{ran.stdout}{ran.stderr}")
        partial.rename(classes)
    return classes


if __name__ == "__main__":
    write_list(ENDPOINTS, JARS)
