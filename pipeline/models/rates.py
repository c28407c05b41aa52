"""Rate tables on the cluster: a batch is processed again, later and elsewhere, with its first table."""

import logging
from collections.abc import Iterator
from typing import Final

from pipeline.kafka.cluster.log_offsets import Waiting
from pipeline.kafka.readers.replay_reader import NewRecords
from pipeline.kafka.records.internal import OnRefused, TrustedRecords, not_counted
from pipeline.kafka.session.quarantine import decode_control
from pipeline.models.contents import VersionContents
from pipeline.models.publish import VersionToPublish, publish_active
from pipeline.settings import Settings
from pipeline.settings.rate_table import RatesError
from schemas.messages import Activation, VersionReference
from schemas.money import InvalidRates, RateTable, load
from schemas.topics import CONTROL, MODELS

log = logging.getLogger(__name__)

RATES: Final = "rates"


class PublishedRates:
    """The rate tables that ``control`` names and whose content is on ``models``; used from one thread at a time.

    Args:
        on_refused: Counts records of these topics that cannot be read.
    """

    def __init__(self, bootstrap: str, settings: Settings, on_refused: OnRefused = not_counted) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._trusted = TrustedRecords(settings, on_refused)
        self._unfound: list[VersionReference] = []
        """Tables that were named and whose content could not be read."""
        self._tables: dict[tuple[str, str], RateTable] = {}
        """Tables by version and digest, in the order in which they were published."""
        self._contents = VersionContents(bootstrap, settings, on_refused)
        self._control = NewRecords(bootstrap, settings, settings.topic(CONTROL.name), on_refused)

    def refresh(self, waiting: Waiting = None) -> None:
        """Take in all that was published before this call; ``waiting`` is called while no broker answers."""
        self._unfound += [reference for reference in self._named(waiting) if not self._found(reference, waiting)]

    def publish(self, content: bytes, waiting: Waiting = None) -> bool:
        """Publish a table, given as its file's bytes, before any record is processed with it.

        Args:
            content: The bytes.
            waiting: Called while no broker answers, or a transaction hides what is published; may raise.

        Returns:
            Whether it was new.

        Raises:
            RatesError: Another content has its version.
            InvalidRates: It is no rate table.
            DeliveryFailed: It could not be written.
        """
        table = load(content)
        self.refresh(waiting)
        if new := (table.version, table.digest) not in self._tables:
            # Before it is written too: what nobody may use should not stay there for ever.
            self._refuse_other(table)
            publish_active(self._bootstrap, self._settings, [VersionToPublish(RATES, table.version, content.strip())])
            # Another worker may have written another one at the same moment.
            self.refresh(waiting)
            topic = self._settings.topic(MODELS.name)
            log.info("rate table %s (%s) is published on %s", table.version, table.digest, topic)
        self._refuse_other(table)
        return new

    def table(self, version: str, digest: str) -> RateTable:
        """Return the table that a marker names; raises `RatesError` where it is nowhere to be had."""
        if (version, digest) not in self._tables:
            # Kafka orders nothing between topics: what could not be read when it was named may be there now.
            asked = [reference for reference in self._unfound if reference.version == version]
            found = [reference for reference in asked if self._found(reference, lambda: None)]
            self._unfound = [reference for reference in self._unfound if reference not in found]
        if (version, digest) not in self._tables:
            raise RatesError(
                f"batches were processed by rate table {version!r} ({digest}), which topic "
                f"{self._settings.topic(MODELS.name)} does not hold: publish its file with `fraud-pipeline rates "
                "FILE`, and start again"
            )
        return self._tables[version, digest]

    @property
    def versions(self) -> list[tuple[str, str]]:
        """Version and digest of each table, in the order in which they were published."""
        return list(self._tables)

    def _refuse_other(self, table: RateTable) -> None:
        first = next((digest for version, digest in self._tables if version == table.version), table.digest)
        if first != table.digest:
            raise RatesError(
                f"rate table {table.version!r} says something else ({table.digest}) than the one of this version by "
                f"which transactions were processed ({first}): give what was changed a version of its own, or set "
                "FRAUD_PIPELINE_RATES_FILE to the file as it was"
            )

    def _named(self, waiting: Waiting) -> Iterator[VersionReference]:
        for _, item in self._trusted.readable(self._control.read(waiting), decode_control):
            if isinstance(item, Activation):
                yield from (reference for reference in item.versions if reference.name == RATES)

    def _found(self, reference: VersionReference, waiting: Waiting) -> bool:
        content = self._contents.find(reference, waiting)
        if content is None:
            return False
        try:
            table = load(bytes(content.payload))
        except InvalidRates as error:
            log.error("rate table %s is refused: %s", reference.version, error)
        else:
            self._tables.setdefault((table.version, table.digest), table)
        return True
