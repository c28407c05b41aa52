"""Lists of pinned jars, made anew for the embedded broker: ``python -m tests.helpers.jar_lists``."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pipeline.broker.jars import LIST_NAME, Jar, file_digest

ENDPOINTS: Final = (
    "org.apache.kafka:kafka_2.13:4.2.2",
    # Kafka logs through slf4j 1.7 and depends on log4j 2, but not on the piece between the two.
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5",
)


def resolve(endpoints: Sequence[str]) -> list[Jar]:
    """Resolve ``endpoints`` with all that they need, and hash every jar.

    Of two versions of a jar, the first endpoint's is taken.
    """
    import jgo

    found: dict[tuple[str, str], Jar] = {}
    # One by one: in a common resolution the versions that one endpoint manages would replace those that Kafka asks for.
    for endpoint in endpoints:
        for artifact in jgo.resolve(endpoint):
            path = Path(artifact.resolve())
            group, name, version = str(artifact.groupId), str(artifact.artifactId), str(artifact.version)
            found.setdefault((group, name), Jar(group, name, version, path.stat().st_size, file_digest(path)))
    return list(found.values())


def write_list(endpoints: Sequence[str], target: Path) -> None:
    """Write the list of all that ``endpoints`` need."""
    jars = resolve(endpoints)
    content = {"endpoints": endpoints, "jars": [asdict(jar) for jar in jars]}
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(jars)} jars")


if __name__ == "__main__":
    write_list(ENDPOINTS, Path(__file__).parents[2] / "pipeline/data" / LIST_NAME)
