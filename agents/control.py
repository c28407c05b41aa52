"""Records set aside: what an agent could not process, kept on ``models``, and passed over by every reading after."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from agents.models import CONTROL
from pipeline.engine.results import Result
from pipeline.kafka.clients import read_batches
from pipeline.settings import Settings
from schemas.messages import SetAside
from schemas.records import Output, Record
from schemas.topics import MODELS

_decode = msgspec.json.Decoder(SetAside).decode
_encode = msgspec.json.Encoder().encode
_TEXT_LIMIT = 1_000


class SetAsides:
    """The records that one agent passes over; used from its thread."""

    def __init__(self, bootstrap: str, settings: Settings, agent: str) -> None:
        self._bootstrap, self._settings, self._agent = bootstrap, settings, agent
        self._places: set[tuple[str, int, int]] = set()
        self._next: dict[int, int] = {}

    def refresh(self) -> None:
        """Take in all that was set aside before this call, by whomever: to be called before a fold."""
        name = self._settings.topic(MODELS.name)
        for records in read_batches(self._bootstrap, name, settings=self._settings, start=self._next):
            for record in records:
                self._next[record.partition] = record.offset + 1
                if record.key is not None and record.value is not None and record.key.startswith(CONTROL):
                    item = _decode(record.value)
                    if item.agent == self._agent:
                        self._places.add((self._settings.topic(item.topic), item.partition, item.offset))

    def without(self, records: Sequence[Record]) -> Sequence[Record]:
        """``records`` but for those that are set aside."""
        if not self._places:
            return records
        return [r for r in records if (r.topic, r.partition, r.offset) not in self._places]

    def add(self, record: Record, error: Exception, now: datetime) -> Result:
        """Set ``record`` aside: the control record and the dead letter, to be committed with its offset."""
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
        key = b"%sset-aside/%s/%s/%d/%d" % (
            CONTROL,
            self._agent.encode(),
            topic.encode(),
            record.partition,
            record.offset,
        )
        result.outputs.append(Output(MODELS, key, _encode(item)))
        result.dead_letter(record, self._agent, "set_aside", f"{item.error}: {item.message}")
        result.counts["set_aside", topic] += 1
        self._places.add((record.topic, record.partition, record.offset))
        return result
