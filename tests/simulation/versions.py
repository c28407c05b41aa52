"""Which versions a worker must use now, as ``control`` and ``models`` say."""

from typing import NamedTuple

from pipeline.scoring.payload import payload_digest
from pipeline.scoring.river_factory import first_river
from schemas.messages import Activation, LearningSwitch, ModelVersion, VersionReference
from schemas.records import Record
from tests.simulation.model_kafka import Cluster
from tests.simulation.names import PREFIX
from tests.simulation.reading import decode_control, decode_version, messages


class Versions(NamedTuple):
    """The active versions."""

    lightgbm: str
    policy: str
    river: str


def active_versions(cluster: Cluster) -> Versions:
    """Return the versions that ``control`` and ``models`` make active now (16, 17)."""
    published = _published(cluster)
    there = {(version.name, version.digest) for version in published}
    controls = [entry for entry in cluster.logs[PREFIX + "control", 0].entries if isinstance(entry, Record)]
    found: dict[str, VersionReference] = {}
    for _, item in reversed(list(messages(controls, "control", decode_control))):
        if isinstance(item, Activation):
            left = [
                version
                for version in item.versions
                if version.name in ("lightgbm", "policy") and version.name not in found
            ]
            if all((version.name, version.digest) in there for version in left):
                found |= {entry.name: entry for entry in left}
    return Versions(found["lightgbm"].version, found["policy"].version, newest_river(cluster) or first_river().version)


def learning_is_frozen(cluster: Cluster) -> bool:
    """Return what the newest switch on ``control`` says (21)."""
    controls = [entry for entry in cluster.logs[PREFIX + "control", 0].entries if isinstance(entry, Record)]
    items = [item for _, item in messages(controls, "control", decode_control)]
    return next((item.frozen for item in reversed(items) if isinstance(item, LearningSwitch)), False)


def newest_river(cluster: Cluster) -> str:
    """Return the newest version of the online model; empty before there is one."""
    return next((version.version for version in reversed(_published(cluster)) if version.name == "river"), "")


def _published(cluster: Cluster) -> list[ModelVersion]:
    """Return the records of ``models`` whose content has the digest that they name (15)."""
    records = [entry for entry in cluster.logs[PREFIX + "models", 0].entries if isinstance(entry, Record)]
    return [
        version
        for _, version in messages(records, "models", decode_version)
        if payload_digest(bytes(version.payload)) == version.digest
    ]
