"""The model registry: a directory of immutable versions.

    <registry>/<name>/<version>/payload.json    the version itself; its SHA-256 begins with <version>
    <registry>/<name>/<version>/metadata.json   how it came about
    <registry>/<name>/active                    the active version
    <registry>/files/<file>                     states of River classifiers that are not numbers

Every write goes to a temporary place beside its target and is renamed onto it, so that readers and other writers see
all of it or nothing. A version never changes; registering the same content twice gives the same version.
"""

import hashlib
import platform
import re
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline.decision.policy import Policy
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.scoring.errors import ModelError
from pipeline.scoring.payload import VERSION_DIGITS, payload_digest
from pipeline.state.durability import flush_directory, replace_file, write_flushed
from schemas.messages import Timestamp

LIGHTGBM: Final = "lightgbm"
POLICY: Final = "policy"

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,63}")
_VERSION: Final = re.compile(r"[0-9a-f]{12}")
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LIBRARIES: Final = ("lightgbm", "numpy", "river", "scikit-learn", "scipy")


class RegistryError(ModelError):
    """The registry has no such version, or one that was changed; the text says what to do."""


class RegistryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of a version, readable without its payload."""

    name: str
    version: str
    digest: str
    """SHA-256 of the payload, hexadecimal."""
    created: Timestamp
    kernel: str
    libraries: dict[str, str]
    details: dict[str, Any] = {}
    """Features, periods, metrics and settings, as the training reports them."""


class Registry:
    """Versions of models and policies below ``path``, which is made when something is first registered."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def register(self, name: str, payload: bytes, details: dict[str, Any] | None = None) -> str:
        """Write a version and return its name; one of the same content stays as it is.

        Args:
            name: What it is a version of: `LIGHTGBM` or `POLICY`.
            payload: Content, which sets the version's name.
            details: Features, periods, metrics and settings, for the metadata.

        Returns:
            The version: 12 hexadecimal digits.
        """
        digest, home = payload_digest(payload), self._home(name)
        version = digest[:VERSION_DIGITS]
        target = home / version
        if target.is_dir():
            self.load(name, version)
            return version
        entry = RegistryEntry(
            name=name,
            version=version,
            digest=digest,
            created=datetime.now(UTC),
            kernel=KERNEL_VERSION,
            libraries={"python": platform.python_version()}
            | {library: library_version(library) for library in _LIBRARIES},
            details=details or {},
        )
        home.mkdir(parents=True, exist_ok=True)
        # Renamed away when all goes well, so that nothing is left to clean up.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=home) as name_of_new:
            temporary = Path(name_of_new)
            write_flushed(temporary / "payload.json", payload)
            write_flushed(temporary / "metadata.json", msgspec.json.format(msgspec.json.encode(entry)))
            try:
                temporary.rename(target)
            except OSError:
                # Another process was first with the same content; anything else is an error.
                if not target.is_dir():
                    raise
                self.load(name, version)
        flush_directory(home)
        return version

    def entry(self, name: str, version: str) -> RegistryEntry:
        """Return the metadata of a version.

        Args:
            name: What it is a version of.
            version: 12 hexadecimal digits.

        Raises:
            RegistryError: There is no such version, or its metadata are damaged.
        """
        path = self._directory(name, version) / "metadata.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=RegistryEntry)
        except FileNotFoundError:
            known = ", ".join(entry.version for entry in self.entries(name)) or "none"
            raise RegistryError(f"the registry {self.path} has no {name} version {version}; it has {known}") from None
        except msgspec.MsgspecError as error:
            raise RegistryError(f"{path} is damaged ({error}); restore it or register the version again") from error

    def load(self, name: str, version: str) -> bytes:
        """Return the payload of a version, its digest verified.

        Args:
            name: What it is a version of.
            version: 12 hexadecimal digits.

        Raises:
            RegistryError: There is no such version, or its payload was changed.
        """
        entry = self.entry(name, version)
        path = self._directory(name, version) / "payload.json"
        try:
            payload = path.read_bytes()
        except FileNotFoundError:
            raise RegistryError(f"{path} is missing; restore it or register the version again") from None
        digest = payload_digest(payload)
        if digest != entry.digest or not digest.startswith(version):
            raise RegistryError(
                f"{path} is not what was registered as {version} (its digest is {digest}); "
                "do not use it: restore the file from a copy, or delete the version and train again"
            )
        return payload

    def load_policy(self, version: str) -> Policy:
        """Load the policy ``version``."""
        return Policy.from_payload(self.load(POLICY, version))

    def entries(self, name: str) -> list[RegistryEntry]:
        """Return the metadata of all versions of ``name``, the oldest first."""
        home = self._home(name)
        if not home.is_dir():
            return []
        versions = [child.name for child in home.iterdir() if child.is_dir() and _VERSION.fullmatch(child.name)]
        return sorted((self.entry(name, version) for version in versions), key=lambda entry: entry.created)

    def latest(self, name: str) -> str | None:
        """Return the version of ``name`` that was registered last, or None."""
        entries = self.entries(name)
        return entries[-1].version if entries else None

    def active(self, name: str) -> str | None:
        """Return the active version of ``name``, or None while there is none."""
        pointer = self._home(name) / "active"
        try:
            return pointer.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def activate(self, name: str, version: str) -> None:
        """Activate ``version`` of ``name``; it is read and verified first. Raises `RegistryError`."""
        self.load(name, version)
        replace_file(self._home(name) / "active", f"{version}\n".encode())

    def save_file(self, name: str, content: bytes) -> None:
        """Save a state that is not numbers; the same name with the same content may be saved again.

        Args:
            name: Name of the file.
            content: Its bytes.
        """
        path = self._file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)

    def read_file(self, name: str, digest: str) -> bytes:
        """Return the content of a file.

        Args:
            name: Name of the file.
            digest: SHA-256 of the content, hexadecimal.

        Raises:
            RegistryError: The file has another digest, or is missing.
        """
        path = self._file(name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise RegistryError(
                f"{path} is missing: workers with a configured River classifier share one registry directory"
            ) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise RegistryError(f"{path} does not have the digest {digest} that was published; do not use it")
        return content

    def _home(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise RegistryError(f"{name!r} is no name of a model; use lower-case letters, digits and hyphens")
        return self.path / name

    def _directory(self, name: str, version: str) -> Path:
        if not _VERSION.fullmatch(version):
            raise RegistryError(f"{version!r} is no version; versions are 12 hexadecimal digits")
        return self._home(name) / version

    def _file(self, name: str) -> Path:
        # Names come from messages: one that is a path would lead out of the registry.
        if not _FILE.fullmatch(name):
            raise RegistryError(f"{name!r} is no name of a registry file")
        return self.path / "files" / name
