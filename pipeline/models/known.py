"""Versions by name, wherever they are: on a cluster, in a registry or in both."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from pipeline.decision.policy import Policy
from pipeline.models.library import PublishedVersions
from pipeline.models.registry import LIGHTGBM, POLICY, Registry, RegistryEntry
from pipeline.models.version_history import BUNDLED, FALL_BACK, VersionHistory
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import VERSION_DIGITS, payload_digest
from schemas.messages import VersionReference

_PREFIX: Final = re.compile(r"[0-9a-f]{4,64}")


class KnownVersion(NamedTuple):
    """A LightGBM or policy version with its content."""

    name: str
    version: str
    payload: bytes
    reference: VersionReference | None = None
    """The version's position in the cluster; None if it is not there."""
    entry: RegistryEntry | None = None
    """The registry's entry; None if it has none."""

    @classmethod
    def made(cls, version: LightGBMModel | Policy) -> Self:
        """Return a version that was made here, and is nowhere yet."""
        name = POLICY if isinstance(version, Policy) else LIGHTGBM
        return cls(name, version.version, version.to_payload())

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        return payload_digest(self.payload)

    def usable(self) -> LightGBMModel | Policy:
        """Read the version as a worker does.

        Raises:
            ModelError: This program would refuse it.
        """
        try:
            return (Policy if self.name == POLICY else LightGBMModel).from_payload(self.payload)
        except ModelError as error:
            raise ModelError(f"{self.name} version {self.version} cannot be used: {error}") from error


class KnownVersions:
    """The LightGBM and policy versions of a registry, and of a cluster if there is one.

    Args:
        registry: The local registry.
        published: The cluster's versions; None: they are not looked at.
    """

    def __init__(self, registry: Registry, published: PublishedVersions | None = None) -> None:
        self._registry, self._published = registry, published
        self._history = VersionHistory() if published is None else published.history
        self._entries: dict[str, list[RegistryEntry]] = {}
        """Entries of the registry by name, read once."""

    def find(self, version: str, name: str | None = None) -> KnownVersion:
        """Return the version whose digest begins with ``version``, of 4 digits or more.

        Args:
            version: The beginning of a digest.
            name: ``lightgbm`` or ``policy``; either by default.

        Raises:
            ModelError: There is no such version, there are several, or its content cannot be read.
        """
        if not _PREFIX.fullmatch(version):
            raise ModelError(f"{version!r} is no version: give 4 to 64 of its hexadecimal digits")
        names = BUNDLED if name is None else (name,)
        references = {
            (mention.reference.name, mention.reference.version): mention.reference
            for mention in self._history.mentions()
            if mention.reference.name in names and mention.reference.digest.startswith(version)
        }
        entries = {
            (known.name, known.version): known
            for model_name in names
            for known in self._registered(model_name)
            if known.digest.startswith(version)
        }
        found = sorted({*references, *entries})
        if not found:
            where = f"the registry {self._registry.path}"
            where += " has no" if self._published is None else " and the cluster have no"
            kind = "" if name is None else f"{name} "
            raise ModelError(f"{where} {kind}version {version}; `fraud-pipeline models list` shows what there is")
        if len(found) > 1:
            listed = ", ".join(f"{model_name} {known}" for model_name, known in found)
            raise ModelError(f"{version} may be any of {listed}: give more digits")
        return self._known(references.get(found[0]), entries.get(found[0]))

    def at(self, reference: VersionReference) -> KnownVersion:
        """Return a version of the cluster; raises `ModelError` where neither it nor the registry has its content."""
        entries = [entry for entry in self._registered(reference.name) if entry.digest == reference.digest]
        return self._known(reference, entries[0] if entries else None)

    def policy_for(self, lightgbm: str) -> KnownVersion:
        """Return the policy that was made for a LightGBM version of 12 digits; raises `ModelError` without one.

        It is the last one that was active on the cluster, else the newest.
        """
        for known in self._policies(lightgbm):
            if Policy.from_payload(known.payload).lightgbm_version == lightgbm:
                return known
        raise ModelError(
            f"no policy was made for LightGBM version {lightgbm}: name one of another version with --policy, or train "
            "the version again"
        )

    def _policies(self, lightgbm: str) -> Iterator[KnownVersion]:
        """Yield the policies that were active beside a version, those of the registry, and all; the newest first."""
        for bundle in reversed(self._history.bundles()):
            # A fall-back switches the online model off; that is no policy to come back to.
            if bundle.lightgbm.digest.startswith(lightgbm) and bundle.activation.step != FALL_BACK:
                yield self.at(bundle.policy)
        for entry in reversed(self._registered(POLICY)):
            yield self.at_entry(entry)
        for mention in self._history.mentions():
            if mention.reference.name == POLICY:
                yield self.at(mention.reference)

    def at_entry(self, entry: RegistryEntry) -> KnownVersion:
        """Return a version of the registry; raises `pipeline.models.registry.RegistryError`."""
        return self._known(None, entry)

    def _registered(self, name: str) -> list[RegistryEntry]:
        if name not in self._entries:
            self._entries[name] = self._registry.entries(name)
        return self._entries[name]

    def _known(self, reference: VersionReference | None, entry: RegistryEntry | None) -> KnownVersion:
        if reference is not None and self._published is not None:
            content = self._published.content(reference)
            if content is not None:
                version = content.digest[:VERSION_DIGITS]
                return KnownVersion(reference.name, version, bytes(content.payload), reference, entry)
        if entry is not None:
            return KnownVersion(entry.name, entry.version, self._registry.load(entry.name, entry.version), None, entry)
        lost = "a version" if reference is None else f"{reference.name} version {reference.version}"
        raise ModelError(
            f"the content of {lost} cannot be read on topic models: publish it again, or choose another version"
        )
