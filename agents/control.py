"""Records set aside: what an agent could not process, kept on ``models``, and passed over by every reading after."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from agents.models import SET_ASIDE
from pipeline.engine.results import KEPT_BYTES, Result
from pipeline.kafka.fold import NewRecords
from pipeline.kafka.transactions import OutputTooLarge
from pipeline.settings import Settings
from schemas.messages import SetAside
from schemas.records import Output, Record
from schemas.topics import MODELS

_decode = msgspec.json.Decoder(SetAside).decode
_encode = msgspec.json.Encoder().encode
_TEXT_LIMIT: Final = 1_000
_DAY: Final = timedelta(days=1)


class SetAsides:
    """The records that one agent passes over; used from its thread."""

    def __init__(self, bootstrap: str, settings: Settings, agent: str) -> None:
        self._settings, self._agent = settings, agent
        self._models = NewRecords(bootstrap, settings, settings.topic(MODELS.name), 0)
        self._places: dict[tuple[str, int, int], datetime] = {}
        """By topic (full name), partition and offset: when it was set aside."""

    def refresh(self, waiting: Callable[[], None]) -> None:
        """Take in all that was set aside before this call, by whomever: before a fold, or before they are counted."""
        for record in self._models.read(waiting):
            self._take(record)

    def _take(self, record: Record) -> None:
        if record.key is None or record.value is None or not record.key.startswith(SET_ASIDE):
            return
        item = _decode(record.value)
        if item.agent == self._agent:
            self._places[self._settings.topic(item.topic), item.partition, item.offset] = item.set_aside_at

    def within_a_day(self, now: datetime) -> int:
        """How many were set aside in the 24 hours before ``now``, by whichever worker, as of the last refresh."""
        return sum(now - at < _DAY for at in self._places.values())

    def without(self, records: Sequence[Record]) -> Sequence[Record]:
        """``records`` but for those that are set aside."""
        if not self._places:
            return records
        return [r for r in records if (r.topic, r.partition, r.offset) not in self._places]

    def committed(self, record: Record, now: datetime) -> None:
        """The setting aside of ``record`` is committed."""
        self._places[record.topic, record.partition, record.offset] = now

    def outputs(self, record: Record, error: Exception, now: datetime) -> Result:
        """What sets ``record`` aside once it is committed with its offset: the control record and the dead letter."""
        topic = record.topic.removeprefix(self._settings.topic_prefix)
        item = SetAside(
            agent=self._agent,
            topic=topic,
            partition=record.partition,
            offset=record.offset,
            error=type(error).__name__,
            message=str(error)[:_TEXT_LIMIT],
            set_aside_at=now,
        )
        result = Result()
        key = b"%s%s/%s/%d/%d" % (
            SET_ASIDE,
            self._agent.encode(),
            topic.encode(),
            record.partition,
            record.offset,
        )
        result.outputs.append(Output(MODELS, key, _encode(item)))
        # What made an output too large must not do so again.
        kept_bytes = 0 if isinstance(error, OutputTooLarge) else KEPT_BYTES
        result.dead_letter(record, self._agent, "set_aside", f"{item.error}: {item.message}", kept_bytes=kept_bytes)
        result.counts["set_aside", topic] += 1
        return result
