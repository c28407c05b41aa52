"""Rate tables by which transactions were ever judged: kept on ``models``, so that whoever folds can judge alike."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

from agents.models import RATES
from pipeline.kafka.fold import NewRecords
from pipeline.kafka.producer import RecordProducer
from pipeline.rates import RatesError
from pipeline.settings import Settings
from schemas.messages import RatesVersion
from schemas.money import RateTable, load
from schemas.records import Record
from schemas.topics import MODELS

log = logging.getLogger(__name__)

_decode: Final = msgspec.json.Decoder(RatesVersion).decode
_encode: Final = msgspec.json.Encoder().encode


def _nothing() -> None:
    """Nobody asks meanwhile."""


class PublishedRates:
    """What ``models`` holds of rate tables; used from one thread at a time."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._topic = settings.topic(MODELS.name)
        self._contents: dict[tuple[str, str], bytes] = {}
        """By version and digest, in the order in which they were published."""
        self._tables: dict[tuple[str, str], RateTable] = {}
        self._models = NewRecords(bootstrap, settings, self._topic, 0)

    def refresh(self, waiting: Callable[[], None] = _nothing) -> None:
        """Take in all that was published before this call; ``waiting`` is called while no broker answers."""
        for record in self._models.read(waiting):
            self._take(record)

    def publish(self, content: bytes) -> bool:
        """Let every worker have a table, given as its file's bytes, before anything is judged by it.

        Returns whether it was new. Raises `RatesError` where another content bears its version, and
        `schemas.money.InvalidRates`, `pipeline.kafka.producer.DeliveryFailed`.
        """
        table = load(content)
        self.refresh()
        if new := (table.version, table.digest) not in self._contents:
            # Before it is written too: what nobody may use should not stay there for ever.
            self._refuse_other(table)
            now = datetime.now(UTC)
            message = RatesVersion(
                version=table.version, digest=table.digest, published_at=now, table=msgspec.Raw(content)
            )
            key = b"%s%s/%s" % (RATES, table.version.encode(), table.digest.encode())
            with RecordProducer(self._bootstrap, self._settings) as producer:
                producer.produce(self._topic, key, _encode(message), round(now.timestamp() * 1_000))
            # Another worker may have written another one at the same moment.
            self.refresh()
            log.info("rate table %s (%s) is published on %s", table.version, table.digest, self._topic)
        self._refuse_other(table)
        return new

    def table(self, version: str, digest: str) -> RateTable:
        """The table that a record of ``progress`` names; raises `RatesError` where it is nowhere to be had."""
        name = (version, digest)
        if name not in self._tables:
            if name not in self._contents:
                raise RatesError(
                    f"batches that must be folded were judged by rate table {version!r} ({digest}), which topic "
                    f"{self._topic} does not hold: publish its file with `fraud-pipeline rates FILE`, and start again"
                )
            self._tables[name] = load(self._contents[name])
        return self._tables[name]

    @property
    def versions(self) -> list[tuple[str, str]]:
        """Version and digest of each table, in the order in which they were published."""
        return list(self._contents)

    def _refuse_other(self, table: RateTable) -> None:
        first = next((digest for version, digest in self._contents if version == table.version), table.digest)
        if first != table.digest:
            raise RatesError(
                f"rate table {table.version!r} says something else ({table.digest}) than the one of this version by "
                f"which transactions were judged ({first}): give what was changed a version of its own, or set "
                "FRAUD_PIPELINE_RATES_FILE to the file as it was"
            )

    def _take(self, record: Record) -> None:
        if record.key is None or not record.key.startswith(RATES):
            return
        if record.value is None:
            version, _, digest = record.key.removeprefix(RATES).decode().rpartition("/")
            self._contents.pop((version, digest), None)
            return
        message = _decode(record.value)
        self._contents.setdefault((message.version, message.digest), bytes(message.table))
