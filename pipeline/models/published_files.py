"""Files by which records are processed, on the cluster: a batch is processed again, later and elsewhere, by its own."""

import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Generic, NamedTuple, Protocol, Self, TypeVar

from pipeline.engine.cards.card_options import CardOptions
from pipeline.features.checked_declaration import load_declaration
from pipeline.features.declaration import DIGEST_DIGITS, Declaration, DeclarationError
from pipeline.features.feature_set import FeatureSet
from pipeline.features.known_sets import know
from pipeline.kafka.cluster.log_offsets import Waiting
from pipeline.kafka.readers.replay_reader import NewRecords
from pipeline.kafka.records.internal import OnRefused, TrustedRecords, not_counted
from pipeline.kafka.session.quarantine import decode_control
from pipeline.models.contents import VersionContents
from pipeline.models.publish import ModelChange, VersionToPublish, publish_active
from pipeline.models.version_history import FIRST_START
from pipeline.scoring.payload import payload_digest
from pipeline.settings import Settings
from pipeline.settings.features_file import VARIABLE, FeaturesError
from pipeline.settings.mapping_file import MappingError
from pipeline.settings.rate_table import RatesError
from schemas.mapping import FieldMapping, InvalidMapping, load_mapping
from schemas.messages import Activation, CardConfig, VersionReference
from schemas.money import InvalidRates, RateTable, load
from schemas.topics import CONTROL, MODELS

log = logging.getLogger(__name__)


class ProcessingFile(Protocol):
    """A file's content by which records are processed."""

    @property
    def version(self) -> str:
        """The version that it gives itself."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for all that it says."""


F = TypeVar("F", bound=ProcessingFile)


class FileKind(NamedTuple, Generic[F]):
    """A kind of such files."""

    name: str
    """Name of its versions on ``models`` and ``control``."""
    noun: str
    load: Callable[[bytes], F]
    """Reads what is on ``models``."""
    invalid: type[ValueError]
    """Error that ``load`` raises."""
    error: type[ValueError]
    """Raised for a content that is not to be had, or that is another one than its version had."""
    command: str
    """Publishes a file."""
    setting: str
    """The setting that names the file of a worker."""
    is_canonical: bool
    """True if files that say the same have the same bytes on ``models``."""


RATES: Final = FileKind[RateTable](
    "rates",
    "rate table",
    load,
    InvalidRates,
    RatesError,
    "fraud-pipeline rates FILE",
    "FRAUD_PIPELINE_RATES_FILE",
    is_canonical=False,
)
MAPPING: Final = FileKind[FieldMapping](
    "mapping",
    "mapping",
    load_mapping,
    InvalidMapping,
    MappingError,
    "fraud-pipeline map --publish FILE",
    "FRAUD_PIPELINE_MAPPING_FILE",
    is_canonical=True,
)
FEATURES: Final = FileKind[Declaration](
    "features",
    "declaration of features",
    load_declaration,
    DeclarationError,
    FeaturesError,
    "fraud-pipeline features publish FILE",
    VARIABLE,
    is_canonical=True,
)
KINDS: Final[dict[str, FileKind[Any]]] = {kind.name: kind for kind in (RATES, MAPPING, FEATURES)}
_LOOK_S: Final = 30.0
"""Longest time for which refreshes look for a content that was named and could not be read."""


class DeclarationActivation(NamedTuple):
    """An activation of a declaration of features."""

    at: datetime
    digest: str
    step: str


class PublishedFiles:
    """The files that ``control`` names and ``models`` holds; used from one thread at a time.

    Args:
        on_refused: Counts records of these topics that cannot be read.
    """

    def __init__(self, bootstrap: str, settings: Settings, on_refused: OnRefused = not_counted) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._trusted = TrustedRecords(settings, on_refused)
        self._unfound: list[VersionReference] = []
        """Files that were named and whose content could not be read."""
        self._files: dict[tuple[str, str, str], Any] = {}
        """Files by kind, version and digest, in the order in which they were published."""
        self._declared: list[DeclarationActivation] = []
        self._declarations: dict[str, Declaration] = {}
        """Declarations, keyed by the digest of their content."""
        self._look_until_s = 0.0
        self._contents = VersionContents(bootstrap, settings, on_refused)
        self._control = NewRecords(bootstrap, settings, settings.topic(CONTROL.name), on_refused)

    @classmethod
    def on(cls, bootstrap: str, settings: Settings) -> Self:
        """Read what was published on a cluster before this call."""
        files = cls(bootstrap, settings)
        files.refresh()
        return files

    def refresh(self, waiting: Waiting = None) -> None:
        """Take in all that was published before this call; ``waiting`` is called while no broker answers."""
        now_s, named = time.monotonic(), self._named(waiting)
        if now_s < self._look_until_s:
            self._unfound = [reference for reference in self._unfound if not self._found(reference, waiting)]
        if new := [reference for reference in named if not self._found(reference, waiting)]:
            self._unfound, self._look_until_s = self._unfound + new, now_s + _LOOK_S

    def publish(self, kind: FileKind[F], content: bytes, waiting: Waiting = None) -> bool:
        """Publish a file before any record is processed by it.

        Args:
            kind: Its kind.
            content: Its content, as the kind's ``load`` takes it.
            waiting: Called while no broker answers, or a transaction hides what is published; may raise.

        Returns:
            Whether it was new.

        Raises:
            ValueError: As the kind's ``error``: another content has its version. As its ``invalid``: it is none.
            DeliveryFailed: It could not be written.
        """
        own = kind.load(content)
        self.refresh(waiting)
        if new := (kind.name, own.version, own.digest) not in self._files:
            # Before it is written too: what nobody may use should not stay there for ever.
            self._refuse_other(kind, own, content)
            publish_active(self._bootstrap, self._settings, [VersionToPublish(kind.name, own.version, content.strip())])
            # Another worker may have written another one at the same moment.
            self.refresh(waiting)
            topic = self._settings.topic(MODELS.name)
            log.info("%s %s (%s) is published on %s", kind.noun, own.version, own.digest, topic)
        self._refuse_other(kind, own, content)
        return new

    def publish_first(self, declaration: Declaration, waiting: Waiting = None) -> None:
        """Publish a declaration of features that is active unless another one is, or becomes so at the same moment.

        Args:
            declaration: With its filters as trees.
            waiting: As of `publish`.

        Raises:
            DeliveryFailed: It could not be written.
        """
        content = VersionToPublish(FEATURES.name, declaration.version, declaration.content)
        step = ModelChange(FIRST_START, by="fraud-pipeline worker")
        publish_active(self._bootstrap, self._settings, [content], step)
        self.refresh(waiting)

    def active_declaration(self) -> Declaration | None:
        """Return the declaration of features that was activated last of those that can be read; None without one."""
        found = [declaration for _, declaration in self.declarations() if declaration is not None]
        return found[-1] if found else None

    def declarations(self) -> list[tuple[DeclarationActivation, Declaration | None]]:
        """Return the activations of declarations of features, oldest first, and what each declares.

        None in place of a content that cannot be read. Of workers that start at the same moment the first one's holds,
        and what a person has published holds before a worker's.
        """
        found: list[tuple[DeclarationActivation, Declaration | None]] = []
        for activation in self._declared:
            if activation.step != FIRST_START or all(declaration is None for _, declaration in found):
                found.append((activation, self._declarations.get(activation.digest)))
        return found

    def find(self, kind: FileKind[F], version: str, digest: str) -> F:
        """Return the file that a marker names; raises the kind's ``error`` where it is nowhere to be had."""
        key = kind.name, version, digest
        if key not in self._files:
            # Kafka orders nothing between topics: what could not be read when it was named may be there now.
            asked = [reference for reference in self._unfound if (reference.name, reference.version) == key[:2]]
            found = [reference for reference in asked if self._found(reference, lambda: None)]
            self._unfound = [reference for reference in self._unfound if reference not in found]
        if key not in self._files:
            raise kind.error(
                f"batches were processed by {kind.noun} {version!r} ({digest}), which topic "
                f"{self._settings.topic(MODELS.name)} does not hold: publish its file with `{kind.command}`, and start "
                "again"
            )
        found_file: F = self._files[key]
        return found_file

    def under(self, options: CardOptions, config: CardConfig) -> CardOptions:
        """Return the options under another processing config; raises `RatesError` or `MappingError`."""
        mapping = None
        if config.mapping_version:
            mapping = self.find(MAPPING, config.mapping_version, config.mapping_digest)
        return options.under(config, self.find(RATES, config.rates_version, config.rates_digest), mapping)

    def versions(self, kind: FileKind[Any]) -> list[tuple[str, str]]:
        """Return version and digest of each file of a kind, in the order in which they were published."""
        return [(version, digest) for name, version, digest in self._files if name == kind.name]

    def _refuse_other(self, kind: FileKind[F], own: F, content: bytes) -> None:
        if kind.is_canonical and any(
            (lost.name, lost.version) == (kind.name, own.version) and lost.digest != payload_digest(content.strip())
            for lost in self._unfound
        ):
            raise kind.error(
                f"{kind.noun} {own.version!r} was another file, whose content is lost: publish that one with "
                f"`{kind.command}`, and give what was changed a version of its own"
            )
        first = next((digest for version, digest in self.versions(kind) if version == own.version), own.digest)
        if first != own.digest:
            raise kind.error(
                f"{kind.noun} {own.version!r} says something else ({own.digest}) than the one of this version by "
                f"which transactions were processed ({first}): give what was changed a version of its own, or set "
                f"{kind.setting} to the file as it was"
            )

    def _named(self, waiting: Waiting) -> list[VersionReference]:
        named: list[VersionReference] = []
        for _, item in self._trusted.readable(self._control.read(waiting), decode_control):
            if not isinstance(item, Activation):
                continue
            named += (reference for reference in item.versions if reference.name in KINDS)
            self._declared += (
                DeclarationActivation(item.activated_at, reference.digest[:DIGEST_DIGITS], item.step)
                for reference in item.versions
                if reference.name == FEATURES.name
            )
        return named

    def _found(self, reference: VersionReference, waiting: Waiting) -> bool:
        content = self._contents.find(reference, waiting)
        if content is None:
            return False
        kind = KINDS[reference.name]
        try:
            found = kind.load(bytes(content.payload))
        except kind.invalid as error:
            log.error("%s %s is refused: %s", kind.noun, reference.version, error)
        else:
            self._files.setdefault((kind.name, found.version, found.digest), found)
            if isinstance(found, Declaration):
                know([found])
                self._declarations[reference.digest[:DIGEST_DIGITS]] = found
        return True


def declared_features(bootstrap: str, settings: Settings) -> FeatureSet | None:
    """Return the features of a cluster's active declaration; None without one."""
    active = PublishedFiles.on(bootstrap, settings).active_declaration()
    return None if active is None else FeatureSet(active)
