"""Cut and build a release: ``make release VERSION=x.y.z``.

The version stands in ``pyproject.toml`` alone. A release moves the changelog's unreleased entries under it, commits
both, tags the commit, and builds from the tag into ``dist``: wheel, sdist, SBOM, checksums, and the container image
where an engine runs. Without a version it builds the commit at hand again; the files are the same, byte for byte.
"""

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from packaging.version import Version

NAME: Final = "fraud-pipeline"
UNRELEASED: Final = "## [Unreleased]\n"
ENGINES: Final = ("docker", "podman")


class ReleaseRefused(click.ClickException):
    """The release cannot be cut, and what to do."""


def cut(root: Path, version: str, date: str) -> None:
    """Write the version and the changelog's section, commit both, and tag the commit.

    Args:
        root: Checkout, without uncommitted changes.
        version: ``x.y.z``, not older than the one in ``pyproject.toml``.
        date: Of the section, as ``YYYY-MM-DD``.

    Raises:
        ReleaseRefused: The version, the changelog or the checkout does not allow it.
    """
    metadata, changelog = root / "pyproject.toml", root / "CHANGELOG.md"
    current = _version(metadata.read_text(encoding="utf-8"))
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseRefused(f"{version} is not a version such as {current}.")
    if Version(version) < Version(current):
        raise ReleaseRefused(f"{version} is older than {current}, which pyproject.toml has. Choose a later version.")
    if _git(root, "status", "--porcelain", "--untracked-files=no"):
        raise ReleaseRefused("The checkout has uncommitted changes. Commit them first.")
    if _git(root, "tag", "--list", f"v{version}"):
        raise ReleaseRefused(f"The tag v{version} exists. Choose a later version.")
    changelog.write_text(released(changelog.read_text(encoding="utf-8"), version, date), encoding="utf-8")
    text = re.sub(
        r'^version = ".*"$',
        f'version = "{version}"',
        metadata.read_text(encoding="utf-8"),
        count=1,
        flags=re.MULTILINE,
    )
    metadata.write_text(text, encoding="utf-8")
    _git(root, "commit", "--quiet", "--message", f"Release {version}", "pyproject.toml", "CHANGELOG.md")
    _git(root, "tag", "--annotate", f"v{version}", "--message", f"Release {version}")


def released(changelog: str, version: str, date: str) -> str:
    """Return the changelog with its unreleased entries under ``version``.

    Raises:
        ReleaseRefused: There are no entries, or the version has a section already.
    """
    head, found, rest = changelog.partition(UNRELEASED)
    entries = re.split(r"^## \[", rest, maxsplit=1, flags=re.MULTILINE)[0]
    if not found or not re.search(r"^- \S", entries, re.MULTILINE):
        raise ReleaseRefused("CHANGELOG.md has no entry under [Unreleased]. Say what has changed first.")
    if f"## [{version}]" in changelog:
        raise ReleaseRefused(f"CHANGELOG.md has a section of {version} already. Choose a later version.")
    return f"{head}{UNRELEASED}\n## [{version}] - {date}\n{rest}"


def build(root: Path, target: Path) -> tuple[str, list[Path]]:
    """Build wheel, sdist, SBOM and checksums of the commit at hand.

    Args:
        root: Checkout; what is not committed is left out.
        target: Directory of the files; made where it is missing.

    Returns:
        The version, and the files.
    """
    target.mkdir(parents=True, exist_ok=True)
    epoch = int(_git(root, "log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as directory:
        source = export(root, Path(directory) / "source")
        built = Path(directory) / "built"
        version = _version((source / "pyproject.toml").read_text(encoding="utf-8"))
        sbom = built / f"{NAME}-{version}.cdx.json"
        _python(source, epoch, "build", "--no-isolation", "--outdir", str(built), ".")
        described = ("--pyproject", "pyproject.toml", "--output-reproducible", "--output-file", str(sbom))
        _python(source, epoch, "cyclonedx_py", "requirements", *described, "requirements.lock")
        for sdist in built.glob("*.tar.gz"):
            sdist.write_bytes(_same_each_time(sdist.read_bytes(), epoch))
        files = sorted(built.iterdir())
        sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
        (built / f"{NAME}-{version}.sha256").write_text("".join(sums), encoding="utf-8")
        return version, [Path(shutil.copy(file, target)) for file in sorted(built.iterdir())]


def build_image(root: Path, version: str) -> str:
    """Build the container image of the commit at hand; returns what became of it, in one sentence."""
    for engine in ENGINES:
        if shutil.which(engine) and subprocess.run([engine, "info"], check=False, capture_output=True).returncode == 0:
            with tempfile.TemporaryDirectory() as directory:
                source = export(root, Path(directory) / "source")
                base = base_image(engine, (source / "Dockerfile").read_text(encoding="utf-8"))
                named = ("--build-arg", f"PYTHON_IMAGE={base}", "--label", f"org.opencontainers.image.base.name={base}")
                subprocess.run([engine, "build", *named, "--tag", f"{NAME}:{version}", str(source)], check=True)
            return f"{engine} has built the image {NAME}:{version} on {base}."
    return (
        f"No image was built: neither {' nor '.join(ENGINES)} answers here. "
        "Run `make release` without VERSION where one does, on the tag."
    )


def base_image(engine: str, dockerfile: str) -> str:
    """Return the newest base image of a Dockerfile by its digest, under which it can be had again."""
    (named,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", dockerfile, re.MULTILINE)
    subprocess.run([engine, "pull", "--quiet", named], check=True, capture_output=True)
    inspect = [engine, "image", "inspect", "--format", "{{index .RepoDigests 0}}", named]
    return subprocess.run(inspect, check=True, capture_output=True, text=True).stdout.strip()


def export(root: Path, target: Path) -> Path:
    """Write the files of the commit at hand to ``target``, and return it."""
    archive = subprocess.run(["git", "archive", "HEAD"], check=True, cwd=root, capture_output=True).stdout
    target.mkdir()
    # Python's own way to refuse paths outside is newer than Debian's 3.11.
    subprocess.run(["tar", "--extract", "--directory", target], check=True, input=archive)
    return target


def _python(source: Path, epoch: int, module: str, *arguments: str) -> None:
    """Run a module in ``source``, where all times are to be ``epoch``."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    subprocess.run(
        [sys.executable, "-m", module, *arguments], check=True, cwd=source, env=environment, stdout=sys.stderr
    )


def _same_each_time(sdist: bytes, epoch: int) -> bytes:
    """Return a ``.tar.gz`` in the order of its names, without times and owners of the machine that made it."""
    raw = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(sdist)) as given,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w") as made,
    ):
        for member in sorted(given.getmembers(), key=lambda member: member.name):
            content = given.extractfile(member) if member.isfile() else None
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode, member.pax_headers = 0o755 if member.isdir() else 0o644, {}
            made.addfile(member, content)
    return raw.getvalue()


def _version(metadata: str) -> str:
    return str(tomllib.loads(metadata)["project"]["version"])


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, cwd=root, capture_output=True, text=True).stdout.strip()


@click.command()
@click.argument("version", required=False)
@click.option("--root", type=click.Path(path_type=Path, exists=True), default=Path(), help="Checkout to release.")
@click.option("--image/--no-image", default=True, help="Build the container image.")
def main(version: str | None, root: Path, image: bool) -> None:
    """Cut VERSION and build it; without VERSION, build the commit at hand."""
    if version is not None:
        cut(root, version, f"{datetime.now(UTC):%Y-%m-%d}")
    made, files = build(root, root / "dist")
    for file in files:
        click.echo(file)
    if image:
        click.echo(build_image(root, made))
    if version is not None:
        click.echo(f"Tagged v{version}. To publish it: git push --follow-tags, then upload what is in dist.")


if __name__ == "__main__":
    main()
