import hashlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pytest

from pipeline.decision.policy import Policy
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.models.registry import LIGHTGBM, POLICY, Registry, RegistryError
from tests.helpers.models import registered, small_model


def policy(threshold: float) -> bytes:
    return Policy(threshold).to_payload()


def test_a_version_comes_back_as_it_was_registered(tmp_path) -> None:
    registry, model = Registry(tmp_path / "registry"), small_model()
    version = registry.register(LIGHTGBM, model.to_payload(), {"metrics": {"auc_roc": 0.9}})
    assert version == model.version
    assert registered(registry, version).to_payload() == model.to_payload()
    entry = registry.entry(LIGHTGBM, version)
    assert entry.details == {"metrics": {"auc_roc": 0.9}}
    assert entry.kernel == KERNEL_VERSION
    assert {"lightgbm", "river", "numpy", "python"} <= set(entry.libraries)
    assert entry.digest == hashlib.sha256(model.to_payload()).hexdigest()


def test_versions_are_listed_and_one_is_active(tmp_path) -> None:
    registry = Registry(tmp_path)
    assert registry.active(POLICY) is None
    assert registry.latest(POLICY) is None
    first, second = (registry.register(POLICY, policy(threshold)) for threshold in (0.1, 0.2))
    assert [entry.version for entry in registry.entries(POLICY)] == [first, second]
    assert registry.latest(POLICY) == second
    registry.activate(POLICY, first)
    assert registry.active(POLICY) == first
    registry.activate(POLICY, second)
    assert registry.active(POLICY) == second
    assert registry.load_policy(second).threshold == 0.2


def test_registering_again_leaves_the_version_as_it_is(tmp_path) -> None:
    registry = Registry(tmp_path)
    version = registry.register(POLICY, policy(0.1), {"run": 1})
    assert registry.register(POLICY, policy(0.1), {"run": 2}) == version
    assert registry.entry(POLICY, version).details == {"run": 1}


def test_a_tampered_payload_is_refused(tmp_path) -> None:
    registry = Registry(tmp_path)
    version = registry.register(POLICY, policy(0.1))
    path = tmp_path / POLICY / version / "payload.json"
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.9"))
    with pytest.raises(RegistryError, match="not what was registered"):
        registry.load(POLICY, version)
    with pytest.raises(RegistryError, match="not what was registered"):
        registry.activate(POLICY, version)
    with pytest.raises(RegistryError, match="not what was registered"):
        registry.register(POLICY, policy(0.1))


def test_payload_and_metadata_tampered_alike_are_refused_too(tmp_path) -> None:
    registry = Registry(tmp_path)
    version = registry.register(POLICY, policy(0.1))
    home = tmp_path / POLICY / version
    (home / "payload.json").write_bytes(policy(0.9))
    metadata = msgspec.json.decode((home / "metadata.json").read_bytes())
    metadata["digest"] = hashlib.sha256(policy(0.9)).hexdigest()
    (home / "metadata.json").write_bytes(msgspec.json.encode(metadata))
    with pytest.raises(RegistryError, match="not what was registered"):
        registry.load(POLICY, version)


def test_missing_and_damaged_versions_are_explained(tmp_path) -> None:
    registry = Registry(tmp_path)
    version = registry.register(POLICY, policy(0.1))
    with pytest.raises(RegistryError, match=f"it has {version}"):
        registry.load(POLICY, "0" * 12)
    with pytest.raises(RegistryError, match="no version"):
        registry.load(POLICY, "../../etc")
    with pytest.raises(RegistryError, match="no name"):
        registry.register("../policy", policy(0.1))
    (tmp_path / POLICY / version / "metadata.json").write_text("{")
    with pytest.raises(RegistryError, match="damaged"):
        registry.load(POLICY, version)


def _register(path: Path) -> list[str]:
    registry = Registry(path)
    versions = []
    for number in range(10):
        versions.append(registry.register(POLICY, policy(number / 100), {"number": number}))
        registry.activate(POLICY, versions[-1])
    return versions


def test_writers_at_the_same_time_leave_whole_versions(tmp_path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_register_in, [str(tmp_path)] * 3))
    registry = Registry(tmp_path)
    assert results[0] == results[1] == results[2]
    assert sorted(entry.version for entry in registry.entries(POLICY)) == sorted(results[0])
    for version in results[0]:
        registry.load_policy(version)
    assert registry.active(POLICY) == results[0][-1]
    left = [path.name for path in (tmp_path / POLICY).iterdir() if path.name.startswith(".")]
    assert left == [], "no temporary directory is left behind"


def _register_in(path: str) -> list[str]:
    return _register(Path(path))


def test_files_are_verified_and_their_names_checked(tmp_path) -> None:
    registry = Registry(tmp_path)
    registry.save_file("river-1.bin", b"state")
    digest = hashlib.sha256(b"state").hexdigest()
    assert registry.read_file("river-1.bin", digest) == b"state"
    with pytest.raises(RegistryError, match="digest"):
        registry.read_file("river-1.bin", hashlib.sha256(b"other").hexdigest())
    with pytest.raises(RegistryError, match="missing"):
        registry.read_file("river-2.bin", digest)
    with pytest.raises(RegistryError, match="no name"):
        registry.read_file("../policy/active", digest)
