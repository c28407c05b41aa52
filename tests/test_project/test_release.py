"""A release is cut from the changelog and built the same each time."""

import hashlib
import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.release import ENGINES, ReleaseRefused, build, build_image, main, released
from tests.helpers.pages import shown

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [0.1.0] - 2026-01-01\n\n- All.\n"
METADATA = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "fraud-pipeline"
version = "0.1.0"

[tool.setuptools]
py-modules = ["sample"]
"""


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", *identity, *arguments], check=True, cwd=root, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project in a repository of its own."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text(METADATA)
    (root / "CHANGELOG.md").write_text(CHANGELOG)
    (root / "sample.py").write_text('"""A module."""\n')
    (root / "requirements.lock").write_text(f"click==8.3.3 \\\n    --hash=sha256:{'0' * 64}\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "All")
    return root


def release(root: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["--root", str(root), "--no-image", *arguments])
    return result.exit_code, result.output


def test_a_release_is_tagged_and_built_the_same_again(checkout: Path, tmp_path: Path) -> None:
    code, output = release(checkout, "0.2.0")
    assert code == 0, output
    (command,) = shown("docs/releasing.md", "$ make release")
    # The image depends on what the machine has to build one with.
    assert {line for line in command.shown.splitlines() if "image" not in line} <= {
        *output.replace(f"{checkout}/", "").splitlines()
    }
    assert git(checkout, "describe", "--exact-match").strip() == "v0.2.0"
    assert 'version = "0.2.0"' in (checkout / "pyproject.toml").read_text()
    assert git(checkout, "status", "--porcelain", "--untracked-files=no") == ""

    files = {path.name: path.read_bytes() for path in (checkout / "dist").iterdir()}
    assert sorted(files) == [
        "fraud-pipeline-0.2.0.cdx.json",
        "fraud-pipeline-0.2.0.sha256",
        "fraud_pipeline-0.2.0-py3-none-any.whl",
        "fraud_pipeline-0.2.0.tar.gz",
    ]
    sums = dict(reversed(line.split()) for line in files["fraud-pipeline-0.2.0.sha256"].decode().splitlines())
    assert sums == {name: hashlib.sha256(files[name]).hexdigest() for name in files if not name.endswith("sha256")}
    sbom = json.loads(files["fraud-pipeline-0.2.0.cdx.json"])
    assert [(part["name"], part["version"]) for part in sbom["components"]] == [("click", "8.3.3")]
    with tarfile.open(checkout / "dist/fraud_pipeline-0.2.0.tar.gz") as sdist:
        assert {(member.uid, member.uname) for member in sdist} == {(0, "")}

    (checkout / "sample.py").write_text("not committed")
    version, again = build(checkout, tmp_path / "again")
    assert version == "0.2.0"
    assert {path.name: path.read_bytes() for path in again} == files


@pytest.mark.parametrize(
    ("version", "reason"),
    [("1.2", "not a version"), ("0.0.9", "older than 0.1.0"), ("0.1.0", "has a section of 0.1.0 already")],
)
def test_a_version_that_cannot_be_is_refused(checkout: Path, version: str, reason: str) -> None:
    code, output = release(checkout, version)
    assert code == 1
    assert reason in output
    assert git(checkout, "tag") == git(checkout, "status", "--porcelain") == ""


def test_what_is_not_committed_is_refused(checkout: Path) -> None:
    (checkout / "sample.py").write_text("changed")
    assert release(checkout, "0.2.0") == (1, "Error: The checkout has uncommitted changes. Commit them first.\n")


def test_a_version_that_is_tagged_is_refused(checkout: Path) -> None:
    git(checkout, "tag", "v0.3.0")
    assert release(checkout, "0.3.0") == (1, "Error: The tag v0.3.0 exists. Choose a later version.\n")


def test_the_changelog_gets_a_section() -> None:
    assert released(CHANGELOG, "0.2.0", "2026-02-01") == CHANGELOG.replace(
        "## [Unreleased]\n", "## [Unreleased]\n\n## [0.2.0] - 2026-02-01\n"
    )
    with pytest.raises(ReleaseRefused, match="no entry under"):
        released(CHANGELOG.replace("- A thing.", ""), "0.2.0", "2026-02-01")


ENGINE = """#!/bin/sh
# Says what it is asked to do, as an engine that runs would.
echo "$*" >> "$0.log"
if [ "$1" = image ]; then echo "python@sha256:0123"; fi
"""


def test_the_image_stands_on_a_base_that_is_named_by_its_digest(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "Dockerfile").write_text("ARG PYTHON_IMAGE=python:3.12-slim\nFROM ${PYTHON_IMAGE}\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "An image")
    engine = tmp_path / "docker"
    engine.write_text(ENGINE, encoding="utf-8")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert build_image(checkout, "0.2.0") == ("docker has built the image fraud-pipeline:0.2.0 on python@sha256:0123.")
    (asked,) = re.findall(r"^build (.*) --tag", (tmp_path / "docker.log").read_text(encoding="utf-8"), re.MULTILINE)
    assert "--build-arg PYTHON_IMAGE=python@sha256:0123" in asked


def test_without_an_engine_the_image_is_left_out_with_a_sentence(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert build_image(checkout, "0.2.0").startswith(f"No image was built: neither {' nor '.join(ENGINES)} answers")
