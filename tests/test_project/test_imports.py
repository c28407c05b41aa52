"""Imports that packages may make of each other. The contract is in ``pyproject.toml``; `make imports` checks it."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.helpers.waiting import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")


BREAKS = [
    ("pipeline/features/catalogue.py", "pipeline.settings", "Imports point downwards"),
    ("schemas/topics.py", "pipeline.features.catalogue", "Imports point downwards"),
    ("pipeline/learning/labels.py", "pipeline.decision.policy", "Imports point downwards"),
    ("pipeline/kafka/cluster/retries.py", "pipeline.observability.metrics", "Imports point downwards"),
    ("pipeline/features/catalogue.py", "time", "The core has no Kafka"),
    ("pipeline/settings/settings.py", "faust", "Only agents import Faust"),
    ("pipeline/settings/settings.py", "confluent_kafka", "Only pipeline.kafka imports"),
]


def test_every_module_has_its_layer() -> None:
    """A new module takes its place in the contract before anything relies on it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract for contract in contracts if contract["id"] == "layers")["layers"]
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    found = {
        f"pipeline.{path.stem}"
        for path in (ROOT / "pipeline").iterdir()
        if (path.is_dir() and any(path.glob("*.py"))) or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert found - placed == set()


def test_the_contract_can_be_broken(tmp_path: Path) -> None:
    for package in ("schemas", "pipeline", "agents"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, imported, _ in BREAKS:
        with (tmp_path / module).open("a", encoding="utf-8") as file:
            file.write(f"\nimport {imported}\n")
    command = [LINTER, "--no-cache", "--no-logo"]
    result = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 1, result.stdout + result.stderr
    rows = result.stdout.splitlines()
    for module, imported, contract in BREAKS:
        assert any(contract in row and " BROKEN" in row for row in rows), result.stdout
        chain = f"{module.removesuffix('.py').replace('/', '.')} -> {imported} "
        assert any(chain in row for row in rows), result.stdout
