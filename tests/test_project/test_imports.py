"""Which package may import which. The contract itself is in ``pyproject.toml``; `make imports` runs it too."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINTER, "--no-cache"], check=False, cwd=directory, capture_output=True, text=True, timeout=120
    )


def test_the_contract_is_kept() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_has_its_layer() -> None:
    """A new module takes its place in the contract before anything relies on it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract for contract in contracts if contract["id"] == "layers")["layers"]
    placed = {name.strip("() ") for layer in layers for name in layer.split(":")}
    found = {
        f"pipeline.{path.stem}"
        for path in (ROOT / "pipeline").iterdir()
        if (path.is_dir() and any(path.glob("*.py"))) or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert found - placed == set()


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("pipeline/features/catalogue.py", "import pipeline.settings", "Imports point downwards"),
        ("schemas/topics.py", "import pipeline.features.catalogue", "Imports point downwards"),
        ("pipeline/features/catalogue.py", "import time", "The core has no Kafka"),
        ("pipeline/settings/settings.py", "import faust", "Only agents import Faust"),
        ("pipeline/settings/settings.py", "import confluent_kafka", "Only pipeline.kafka imports"),
    ],
)
def test_the_contract_can_be_broken(tmp_path: Path, module: str, line: str, contract: str) -> None:
    for package in ("schemas", "pipeline", "agents"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    broken = tmp_path / module
    broken.write_text(f"{broken.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert any(contract in row and " BROKEN" in row for row in result.stdout.splitlines()), result.stdout
