"""The thread that reads values which link cases, such as devices, from ``profiled``: behind everything else."""

import logging
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import msgspec

from pipeline.console.queries import UnlinkedAlert
from pipeline.console.reader import StoreThread
from pipeline.engine.encoding.blocks import BlockError, original_of
from pipeline.engine.records.accept import text_of
from pipeline.features.catalogue import ACTIVE
from pipeline.kafka.readers.topic_reader import QUEUE_OF_BLOCKS, read_batches
from pipeline.observability.error_text import explained
from schemas.errors import UNREADABLE
from schemas.messages import Description
from schemas.topics import PROFILED

log = logging.getLogger(__name__)

LINK_FIELDS: Final = ("device_id", "ip", "account_id")
"""Fields of a transaction that link cases, besides declared texts."""
LINK_EVERY_S: Final = 3.0
_ALERTS: Final = 10_000
"""Alerts of a pass over the log at most."""


class _LinkTexts(msgspec.Struct, frozen=True):
    device_id: Description | None = None
    ip: Description | None = None
    account_id: Description | None = None
    attributes: dict[str, Any] | None = None


_decode: Final = msgspec.json.Decoder(_LinkTexts).decode


class LinkReader(StoreThread):
    """Adds the values of new alerts to the database every few seconds.

    Fields that ``profiled`` does not hold are not there. Where the topic cannot be read, cases are linked by merchant
    alone, and a line of the log says so.
    """

    def run(self) -> None:
        """Link alerts until `stop`."""
        warned = ""
        while not self._stopping.wait(LINK_EVERY_S):
            try:
                while (alerts := self._store.unlinked_alerts(_ALERTS)) and not self._stopping.is_set():
                    self.link(alerts)
            # Pages do without links: whatever it is, it is tried again.
            except Exception as error:
                if (text := explained(error) or repr(error)) != warned:
                    warned = text
                    log.warning("cases are not linked by the texts of transactions at the moment: %s", text)

    def link(self, alerts: Sequence[UnlinkedAlert]) -> None:
        """Add the values of alerts; those that the log no longer holds have none."""
        found: dict[int, dict[str, str]] = {alert.number: {} for alert in alerts}
        for partition, group in groupby(alerts, itemgetter(1)):
            wanted: dict[int, list[UnlinkedAlert]] = {}
            for alert in group:
                wanted.setdefault(alert.offset, []).append(alert)
            self._read(partition, wanted, found)
        if changed := self._store.add_links(found):
            self._on_change(changed)

    def _read(self, partition: int, wanted: dict[int, list[UnlinkedAlert]], found: dict[int, dict[str, str]]) -> None:
        """Read one partition from the first wanted record to the last one."""
        last = max(wanted)
        batches = read_batches(
            self._brokers, self._settings.topic(PROFILED.name), settings=self._settings, partitions=[partition],
            start={partition: min(wanted)}, skip_unreadable=True, tuning=QUEUE_OF_BLOCKS,
        )  # fmt: skip
        with closing(batches):
            for records in batches:
                for record in records:
                    for alert in wanted.get(record.offset, ()):
                        found[alert.number] = self._values(record.value, alert.row)
                if records[-1].offset >= last or self._stopping.is_set():
                    return

    def _values(self, block: bytes | None, row: int) -> dict[str, str]:
        try:
            fields = _decode(original_of(block, row))
        except (BlockError, IndexError, *UNREADABLE):
            return {}
        own: dict[str, Any] = {name: getattr(fields, name) for name in LINK_FIELDS}
        own |= {name: (fields.attributes or {}).get(name) for name in ACTIVE.texts}
        texts = {name: text_of(value) if isinstance(value, float) else value for name, value in own.items()}
        dropped = self._settings.dropped_names
        return {name: text for name, text in texts.items() if isinstance(text, str) and text and name not in dropped}
