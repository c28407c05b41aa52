"""Versions that were trained, kept in a registry."""

from typing import Any

from pipeline.models.description import Facts
from pipeline.models.registry import LIGHTGBM, POLICY, Registry, RegistryEntry
from pipeline.training.fit import Trained


def register(registry: Registry, trained: Trained, *, activate: bool = False) -> None:
    """Keep a LightGBM version with its metrics, and the policy made for it.

    Args:
        registry: Where to.
        trained: The version and its policy.
        activate: Whether both become the registry's active versions.

    Raises:
        RegistryError: They cannot be written.
    """
    details = {"metrics": trained.metrics, "features": trained.model.trained_on, **trained.model.metadata}
    registry.register(LIGHTGBM, trained.model.to_payload(), details)
    registry.register(POLICY, trained.policy.to_payload(), {"lightgbm_version": trained.model.version})
    if activate:
        registry.activate(LIGHTGBM, trained.model.version)
        registry.activate(POLICY, trained.policy.version)


def what_differs(first: Facts, again: Facts, entry: RegistryEntry | None, now: RegistryEntry) -> str:
    """Return in one sentence why training a version again gave another one.

    Args:
        first: Facts of the version (`pipeline.models.description.facts_of`).
        again: Facts of the one that was trained again.
        entry: What the registry says of the first; None where it does not have it.
        now: What the registry says of the other.
    """
    settings = _changed(first["request"]["settings"], again["request"]["settings"])
    if settings:
        return f"settings differ: {settings}"
    rows, rows_now = first["input"], again["input"]
    if rows["rows"] != rows_now["rows"]:
        return f"the rows differ: it was trained on {rows['rows']:,}, and the file now gives {rows_now['rows']:,}"
    if first["kernel"] != again["kernel"]:
        return f"the kernels differ: it is of {first['kernel']}, this program is of {again['kernel']}"
    if rows["digest"] != rows_now["digest"]:
        return (
            f"the content of the {rows['rows']:,} rows differs (digest {rows['digest']}, now {rows_now['digest']}): "
            "another file, or another rate table"
        )
    if entry is None:
        return "the rows are the same; which libraries trained it is not recorded, because this registry lacks it"
    libraries = _changed(entry.libraries, now.libraries)
    if libraries:
        return f"the rows are the same, and libraries differ: {libraries}"
    return "the rows and the libraries are the same: this program or this processor computes otherwise"


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} was {before.get(name)} and is {after.get(name)}" for name in names)
