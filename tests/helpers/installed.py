"""The wheel in a virtual environment of its own, as a user has it: the checkout cannot be imported there."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from tests.helpers.worker import ROOT

PACKAGES: Final = ("agents", "pipeline", "schemas")


def build_wheel(directory: Path) -> Path:
    """Build the wheel of the working tree in ``directory``."""
    source = directory / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", directory, source], check=True, timeout=300)
    (wheel,) = directory.glob("*.whl")
    return wheel


def install(wheel: Path, directory: Path) -> Path:
    """Install ``wheel`` into a new virtual environment; returns the path of its ``fraud-pipeline``.

    The dependencies are those of this environment, by their path: what makes the checkout importable here, a ``.pth``
    file among them, is not read from there. Kernels that were compiled here are taken over.
    """
    environment = directory / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=300)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, timeout=300)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    _take_kernels(packages)
    return environment / "bin/fraud-pipeline"


def _take_kernels(packages: Path) -> None:
    """Copy Numba's compiled code, which it finds by the directory of a source file and by the file's content."""
    cache = os.environ.get("NUMBA_CACHE_DIR")
    if cache is None:
        return
    for source in (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_dir()):
        compiled = Path(cache) / _cache_name(source)
        if compiled.is_dir():
            installed = packages / source.relative_to(ROOT)
            shutil.copytree(compiled, Path(cache) / _cache_name(installed), dirs_exist_ok=True)


def _cache_name(directory: Path) -> str:
    return f"{directory.name}_{hashlib.sha1(str(directory).encode(), usedforsecurity=False).hexdigest()}"
