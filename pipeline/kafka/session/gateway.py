"""The gateway: reads a topic of raw messages, and writes them with tokens to one of the pipeline's, exactly once."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from confluent_kafka import KafkaException

from pipeline.engine.records.results import Result, redacted
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.cluster import group_protocol
from pipeline.kafka.cluster.errors import Aborted
from pipeline.kafka.cluster.log_offsets import partition_numbers
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.session.session import Session
from pipeline.kafka.session.state_handler import Stateless
from pipeline.kafka.writers.unfinished_transactions import end_unfinished
from pipeline.protection.signing import Signer
from pipeline.protection.tokens import NotTokenised, Tokeniser
from pipeline.settings import Settings
from schemas.errors import InvalidMessage
from schemas.mapping import Mapper
from schemas.records import Output, Record
from schemas.topics import DEAD_LETTERS, INPUT_BYTES, Topic

log = logging.getLogger(__name__)

STAGE: Final = "tokenise"
_POLL_S: Final = 0.1
_NO_TIMESTAMP_MS: Final = -1


class GatewayError(ValueError):
    """The gateway cannot work like this; the text says what to do."""


class Tokenised(NamedTuple):
    """Numbers of records so far."""

    written: int = 0
    refused: int = 0


class Gateway:
    """Reads ``raw`` in a group of its own and writes to ``target``; outputs and offsets commit together.

    What cannot be tokenised becomes a dead letter without its content, which may hold a card's number.

    Args:
        bootstrap: Addresses of brokers.
        settings: Settings of the gateway; ``instance`` is unique among its processes.
        raw: Topic to read, without prefix.
        target: `schemas.topics.TRANSACTIONS`, or a topic of labels.
        tokeniser: Replaces values.
        mapper: Maps records of transactions before; None: they have the contract's shape.

    Raises:
        GatewayError: ``raw`` is a topic of the pipeline, or outputs would not be exactly once.
        TopicError: A topic is missing.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        raw: str,
        target: Topic,
        tokeniser: Tokeniser,
        mapper: Mapper | None = None,
    ) -> None:
        if raw in {topic.name for topic in settings.topics}:
            raise GatewayError(f"{raw} is a topic of the pipeline: have producers write to another one")
        if settings.delivery != "exactly_once":
            raise GatewayError("a gateway writes exactly once: unset FRAUD_PIPELINE_DELIVERY")
        ensure_topics(bootstrap, settings, [target, DEAD_LETTERS])
        client = admin_client(bootstrap, settings=settings)
        partition_numbers(client, settings.topic(raw))
        name = f"{STAGE}-{target.name}"
        source = Topic(raw, "any", bytes, "producers", "cards", max_message_bytes=INPUT_BYTES)
        # Before another process of this name is fenced: a key that cannot be used ends this one.
        Signer.from_settings(settings)
        end_unfinished(bootstrap, settings, {name: 1})
        self._target, self._tokeniser, self._mapper = target, tokeniser, mapper
        self._session = Session(
            bootstrap, settings, name, [source], Stateless(), group_protocol=group_protocol(client, settings)
        )
        self.done = Tokenised()

    def run(self, stop: threading.Event, progress: Callable[[Tokenised], None]) -> None:
        """Work until ``stop`` is set; ``progress`` is called after each batch.

        Raises:
            SessionError: This process must end.
        """
        try:
            self._session.start()
            while not stop.is_set():
                batch = self._session.poll(_POLL_S)
                if batch is not None:
                    self._work(batch)
                    progress(self.done)
        finally:
            self._session.close()

    def _work(self, batch: Batch) -> None:
        if batch.unreadable is not None:
            result, written = Result(), 0
            at = batch.unreadable
            first = Record(*at.partition, at.start, _NO_TIMESTAMP_MS, None, None)
            result.dead_letter(first, STAGE, "unreadable", at.message, end=at.end)
        else:
            result, written = self._tokenised(batch.records)
        try:
            self._session.commit(batch, result.outputs)
        except (Aborted, KafkaException) as reason:
            log.warning("%s: %d records will be read again: %s", STAGE, len(batch.records), reason)
            return
        self.done = Tokenised(self.done.written + written, self.done.refused + len(result.outputs) - written)

    def _tokenised(self, records: Sequence[Record]) -> tuple[Result, int]:
        """Return the outputs of some records, and how many of them are written to the target."""
        result, written = Result(), 0
        values, taken = list[bytes | None](), list[Record]()
        for record in records:
            try:
                values.append(record.value if self._mapper is None else self._mapper.mapped(record.value))
                taken.append(record)
            except InvalidMessage as error:
                self._refuse(record, error, result)
        for record, found in zip(taken, self._tokeniser.many(values), strict=True):
            if isinstance(found, NotTokenised):
                self._refuse(record, found, result)
                continue
            token, value = found
            result.outputs.append(Output(self._target, token.encode(), value))
            written += 1
        return result, written

    def _refuse(self, record: Record, error: InvalidMessage | NotTokenised, result: Result) -> None:
        result.dead_letter(record, STAGE, error.code, str(error))
        result.outputs[-1] = redacted(result.outputs[-1])
