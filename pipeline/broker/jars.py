"""The jars of Apache Kafka: pinned by version and SHA-256 in the package, fetched once, kept for the user.

The list is read from ``pipeline/data/kafka-jars.json``, so that a start resolves no dependencies: what is missing is
fetched by ``jgo``, without Maven or Java, and checked. ``python -m tests.helpers.jar_lists`` makes the list anew.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.broker.process import INSTALL, BrokerError

LIST_NAME: Final = "kafka-jars.json"
T = TypeVar("T")
PAUSES_S: Final = (0.5, 2.0)
"""Before each further try of a download that broke."""
DOWNLOADS: Final = 8
"""Jars fetched at a time; latency, not bandwidth, is what a first start waits for."""


@dataclass(frozen=True, slots=True)
class Jar:
    """A pinned jar."""

    group: str
    artifact: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        """Place in a repository of Maven's layout."""
        return Path(*self.group.split("."), self.artifact, self.version, f"{self.artifact}-{self.version}.jar")


def pinned() -> list[Jar]:
    """The jars of this version of the project, in the order of the class path."""
    return read_list(resources.files("pipeline").joinpath("data", LIST_NAME).read_text(encoding="utf-8"))


def read_list(text: str) -> list[Jar]:
    """The jars of a list."""
    return [Jar(**entry) for entry in json.loads(text)["jars"]]


def store_dir(fallback: Path) -> Path:
    """Directory of fetched jars: the user's cache, or ``fallback`` where that cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        store = (Path(base) if base else Path.home() / ".cache") / "fraud-pipeline" / "jars"
        store.mkdir(parents=True, exist_ok=True)
        if os.access(store, os.W_OK):
            return store
    except (OSError, RuntimeError):  # no home directory, or one that is not ours: the fallback is the handling
        pass
    fallback.mkdir(parents=True, exist_ok=True)
    return fallback


def fetched(jars: Sequence[Jar], fallback_store: Path) -> list[Path]:
    """Return the paths of ``jars``, in their order; fetch those that are missing or are not the pinned ones.

    The broker's have 45 MB. Every jar is hashed each time: that takes about 0.12 s, and the broker's start seconds.

    Raises:
        BrokerError: A jar cannot be had, or is not the pinned one.
    """
    store = store_dir(fallback_store)
    missing = [jar for jar in jars if not _present(store, jar)]
    if missing:
        _fetch(store, missing)
    return [store / jar.path for jar in jars]


def _present(store: Path, jar: Jar) -> bool:
    path = store / jar.path
    try:
        return path.stat().st_size == jar.size_bytes and file_digest(path) == jar.sha256
    except FileNotFoundError:
        return False


def _fetch(store: Path, jars: Sequence[Jar]) -> None:
    # Each jar is completed in a directory of this process and then moved, so that processes can start at the same time
    # and an interrupted download leaves nothing that looks finished.
    with (
        tempfile.TemporaryDirectory(prefix="incoming-", dir=store) as incoming,
        ThreadPoolExecutor(DOWNLOADS) as threads,
    ):
        context = _maven(Path(incoming))
        for future in [threads.submit(_fetch_one, context, store, jar) for jar in jars]:
            future.result()


def _fetch_one(context: Any, store: Path, jar: Jar) -> None:
    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    try:
        found = Path(_retried(artifact.resolve))
    except Exception as error:
        raise BrokerError(
            f"cannot fetch {jar.path.name}: {error}. What runs on Java needs a Maven repository the first time it "
            "starts; name yours under [repositories] in ~/.config/jgo.conf. Without one the embedded broker cannot "
            "run: set KAFKA_BOOTSTRAP_SERVERS to a Kafka cluster that you have."
        ) from error
    digest = file_digest(found)
    if digest != jar.sha256:
        raise BrokerError(
            f"{jar.path.name} is not the file that this project pins (SHA-256 {digest}, expected {jar.sha256}). "
            f"It came from {found} or a Maven repository: remove it there and try again."
        )
    target = store / jar.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as copy, found.open("rb") as source:
        shutil.copyfileobj(source, copy)
    Path(copy.name).replace(target)


def _retried(fetch: Callable[[], T]) -> T:
    for pause_s in PAUSES_S:
        try:
            return fetch()
        except Exception:
            time.sleep(pause_s)
    return fetch()


def _maven(repository: Path) -> Any:
    """A Maven context that writes to ``repository`` and reads the user's own repository and ``jgo`` settings."""
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
    except ImportError as error:
        raise BrokerError(f"there is no package {error.name}, which fetches Kafka: {INSTALL}") from error

    settings = GlobalSettings.load()
    local = [settings.repo_cache] if Path(settings.repo_cache).is_dir() else []
    return MavenContext(
        repo_cache=repository,
        local_repos=local,
        remote_repos={"central": MAVEN_CENTRAL_URL, **settings.repositories},
        timeout=30,
    )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
