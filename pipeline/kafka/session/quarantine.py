"""Quarantined records: what an agent could not process, written to ``control`` and skipped by every later reading.

``docs/invariants.md`` says which quarantines count. Live processing asks for none: a quarantine commits together with
the offset behind its record, so that what is read live was never quarantined.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from pipeline.engine.encoding.blocks import KernelMismatch
from pipeline.engine.records.results import KEPT_BYTES, Result
from pipeline.engine.scores.block_messages import row_value
from pipeline.kafka.cluster.errors import OutputTooLarge
from pipeline.kafka.readers.replay_reader import NewRecords, unskipped
from pipeline.kafka.records.batch import UnreadableRange
from pipeline.kafka.records.internal import OnRefused, TrustedRecords, readable_value
from pipeline.settings import Settings
from schemas.messages import Control, Quarantine, RecordPosition
from schemas.records import Output, Record
from schemas.topics import CONTROL, Topic, has_order

decode_control: Final = msgspec.json.Decoder(Control).decode


class ProcessDied(RuntimeError):
    """Processes died of one record, each while it worked on nothing else."""


THE_RECORDS_OWN: Final = (OutputTooLarge, ProcessDied, KernelMismatch)
"""Errors for which the record alone is to blame: whoever can write a record can cause them at will."""
_OWN_NAMES: Final = frozenset(kind.__name__ for kind in THE_RECORDS_OWN)
_TEXT_LIMIT: Final = 1_000
_NO_TIMESTAMP_MS: Final = -1
"""The timestamp of records that have none, as in Kafka."""
_DAY: Final = timedelta(days=1)
_Position = tuple[str, int, int]


def value_digest(value: bytes | None) -> str | None:
    """Return the SHA-256 of a record's value, hexadecimal; None for a record without a value."""
    return None if value is None else hashlib.sha256(value).hexdigest()


class QuarantinedRecords:
    """The single records that ``control`` names for one or more agents."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[tuple[str, _Position], list[Quarantine]] = {}

    def add(self, item: Quarantine) -> None:
        """Take in a control record. Ranges are left out: whoever meets one that cannot be read looks for it."""
        position = item.position
        if position.end is None:
            at = (self._settings.topic(position.topic), position.partition, position.offset)
            self._known.setdefault((item.agent, at), []).append(item)

    def without(self, agent: str, records: Iterable[Record]) -> list[Record]:
        """Return the records that ``agent`` does not skip, with the rows of them that it skips.

        A quarantine that names another digest was written for another record, and is not believed.
        """
        kept: list[Record] = []
        for record in records:
            items = self._known.get((agent, (record.topic, record.partition, record.offset)), ())
            believed = [item.position for item in items if item.digest == value_digest(record.value)]
            if (left := unskipped(record, believed)) is not None:
                kept.append(left)
        return kept

    def count_between(self, agent: str, start: datetime, end: datetime) -> int:
        """Return how many records and rows ``agent`` quarantined after ``start`` for what may be the program's.

        What bears a time behind ``end`` is forged: it would count for ever.
        """
        return sum(
            len({i.position.row for i in items if start < i.quarantined_at <= end and i.error_type not in _OWN_NAMES})
            for (owner, _), items in self._known.items()
            if owner == agent
        )


class Quarantines:
    """The quarantines of one agent; used from its thread.

    Args:
        agent: Name of the agent.
        reads: Topics that it reads.
        on_refused: Counts records of ``control`` that cannot be read or trusted.
    """

    def __init__(
        self, bootstrap: str, settings: Settings, agent: str, reads: Sequence[Topic], on_refused: OnRefused
    ) -> None:
        self._settings, self._agent = settings, agent
        self._trusted = TrustedRecords(settings, on_refused)
        self._control = NewRecords(bootstrap, settings, settings.topic(CONTROL.name), on_refused)
        self._known = QuarantinedRecords(settings)
        # The batches of an agent with several inputs are on `progress`, with what was quarantined of each.
        self._from_markers = has_order(reads)

    def refresh(self, waiting: Callable[[], None]) -> None:
        """Read all control records that were committed before this call; ``waiting`` is called meanwhile."""
        self._take(self._control.read(waiting))

    def _take(self, records: Iterable[Record]) -> None:
        for _, item in self._trusted.readable(records, decode_control):
            if isinstance(item, Quarantine) and item.agent == self._agent:
                self._known.add(item)

    def within_a_day(self, now: datetime) -> int:
        """Return how many records were quarantined in the 24 hours before ``now``, as of the last refresh."""
        return self._known.count_between(self._agent, now - _DAY, now)

    def without(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return the committed ``records`` that a restore replays, with the rows of them that it skips."""
        return records if self._from_markers else self._known.without(self._agent, records)

    def position(self, record: Record, row: int | None = None) -> RecordPosition:
        """Return the position of a record, or of a row of it, its topic without prefix."""
        return self._position(record.topic, record.partition, record.offset, row=row)

    def range_position(self, unreadable: UnreadableRange) -> RecordPosition:
        """Return the position of a range, its topic without prefix."""
        return self._position(*unreadable.partition, unreadable.start, unreadable.end)

    def outputs(self, record: Record, error: Exception, now: datetime, row: int | None = None) -> Result:
        """Return what quarantines a record once it commits with its offset: control record and dead letter.

        Args:
            record: The record as it was read.
            error: Why it could not be processed.
            now: Time of the quarantine, aware.
            row: Number of a row of a block, which alone is quarantined; its dead letter has what `row_value` returns.
                None: the whole record.
        """
        kind, message = type(error).__name__, self._text(error)
        result = self._quarantined(self.position(record, row), value_digest(record.value), kind, message, now)
        if row is not None:
            record = msgspec.structs.replace(record, value=row_value(record.value, row))
        # What made an output too large must not do so again.
        kept_bytes = 0 if isinstance(error, OutputTooLarge) else KEPT_BYTES
        result.dead_letter(record, self._agent, "set_aside", f"{kind}: {message}", kept_bytes=kept_bytes, row=row)
        return result

    def _text(self, error: Exception) -> str:
        """Return what ``control``, which is kept for ever, may have of an error: its text may hold a card's number."""
        if self._settings.dead_letters == "redacted" and not isinstance(error, THE_RECORDS_OWN):
            return ""
        return str(error)[:_TEXT_LIMIT]

    def range_outputs(self, unreadable: UnreadableRange, now: datetime) -> Result:
        """Return what quarantines offsets that cannot be read, once it commits with the offset behind them."""
        message = unreadable.message[:_TEXT_LIMIT]
        result = self._quarantined(self.range_position(unreadable), None, unreadable.error, message, now)
        first = Record(*unreadable.partition, unreadable.start, _NO_TIMESTAMP_MS, None, None)
        sentence = f"Offsets {unreadable.start} to {unreadable.end - 1} cannot be read: {message}"
        result.dead_letter(first, self._agent, "unreadable", sentence, end=unreadable.end)
        return result

    def _position(
        self, topic: str, partition: int, offset: int, end: int | None = None, row: int | None = None
    ) -> RecordPosition:
        bare = topic.removeprefix(self._settings.topic_prefix)
        return RecordPosition(topic=bare, partition=partition, offset=offset, end=end, row=row)

    def _quarantined(
        self, position: RecordPosition, digest: str | None, error_type: str, message: str, now: datetime
    ) -> Result:
        """Return the control record of a quarantine, counted."""
        item = Quarantine(
            agent=self._agent,
            position=position,
            digest=digest,
            error_type=error_type,
            message=message,
            quarantined_at=now,
        )
        result = Result()
        result.outputs.append(control_record(item))
        result.counts["quarantined", position.topic] += 1
        return result


def control_record(item: Control) -> Output:
    """Return the record of ``control`` for ``item``; its key is for people, and no reader uses it."""
    if isinstance(item, Quarantine):
        at = item.position
        row = "" if at.row is None else f"/{at.row}"
        key = f"quarantine/{item.agent}/{at.topic}/{at.partition}/{at.offset}{row}"
    else:
        key = str(item.__struct_config__.tag)
    return Output(CONTROL, key.encode(), readable_value(item, decode_control))
