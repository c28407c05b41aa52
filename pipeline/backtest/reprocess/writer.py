"""Writes a run of reprocess behind the part of it that its topics hold."""

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import numpy as np

from pipeline.backtest.reprocess.messages import DecisionMessages
from pipeline.backtest.reprocess.written_runs import DECIDED, RUN, Fingerprint, Present, ReprocessError, RunTopics
from pipeline.engine.records.subjects import CARD
from pipeline.engine.scores.decisions import Decisions
from pipeline.kafka.writers.producer import TopicRecord, TransactionalProducer

_TRANSACTION_ROWS: Final = 5_000
"""Decisions of a transaction, which has about ten megabytes with their features."""


class RunWriter:
    """Passes over what is there, and writes the rest."""

    def __init__(
        self,
        producer: TransactionalProducer,
        topics: RunTopics,
        run: str,
        present: Present,
        messages: DecisionMessages,
        begun: Callable[[], None],
    ) -> None:
        """Prepare to write behind what is there.

        Args:
            producer: Writes a transaction.
            topics: Topics to write to.
            run: The run's name.
            present: Content of the topics, which is the beginning of the run.
            messages: Writes the messages.
            begun: Called once the first transaction is there: what it replaces may go then, and not before. A range
                without a decision, or a run that another one has fenced, so takes nothing away.
        """
        self._producer, self._topics, self._run, self._messages = producer, topics, run, messages
        self._begun = begun
        self._present, self._before = present, present.decisions.size
        self._passed, self._fingerprint = 0, Fingerprint(messages.numbering)
        self._waiting: deque[Decisions] = deque()
        self._waiting_rows = 0
        self.written = 0

    def take(self, name: str, decisions: Decisions) -> None:
        """Write decisions; the last of them wait for those behind, or for the end."""
        del name
        over = min(self._before - self._passed, len(decisions))
        if over:
            self._pass_over(decisions.take(np.arange(over)))
            decisions = decisions.take(np.arange(over, len(decisions)))
        if len(decisions):
            self._waiting.append(decisions)
            self._waiting_rows += len(decisions)
        while self._waiting_rows > _TRANSACTION_ROWS:
            self._write(_TRANSACTION_ROWS, [])

    def finish(self) -> None:
        """Write what waits, and say that this is all."""
        # The beginning of a run is never all of it.
        if not self._waiting_rows:
            raise self._other()
        total = self._before + self.written + self._waiting_rows
        self._write(self._waiting_rows, [(DECIDED, str(total).encode())])

    def _write(self, rows: int, more: list[tuple[str, bytes | None]]) -> None:
        """Write the first of the decisions that wait, with their features, in one transaction."""
        records = [record for decisions in self._taken(rows) for record in self._records(decisions)]
        self._producer.write(records, [(RUN, self._run.encode()), *more])
        if not self.written:
            self._begun()
        self.written += rows

    def _taken(self, rows: int) -> list[Decisions]:
        """Take the first of the decisions that wait."""
        self._waiting_rows -= rows
        taken: list[Decisions] = []
        while rows:
            decisions = self._waiting.popleft()
            if len(decisions) > rows:
                self._waiting.appendleft(decisions.take(np.arange(rows, len(decisions))))
                decisions = decisions.take(np.arange(rows))
            taken.append(decisions)
            rows -= len(decisions)
        return taken

    def _records(self, decisions: Decisions) -> list[TopicRecord]:
        batch = self._messages.batch(decisions, datetime.now(UTC))
        keys = batch.subjects.texts(CARD)
        records = [
            TopicRecord(self._topics.decisions, key, value)
            for key, value in zip(keys, self._messages.values(batch), strict=True)
        ]
        for block in self._messages.blocks(batch, keys):
            records.append(TopicRecord(self._topics.features, block.key, block.value or b"", block.partition))
        return records

    def _pass_over(self, decisions: Decisions) -> None:
        self._fingerprint.add(decisions)
        self._passed += len(decisions)
        if self._passed == self._before and not self._fingerprint.is_of(self._present):
            raise self._other()

    def _other(self) -> ReprocessError:
        return ReprocessError(
            f"the {self._before:,} decisions of this run in topic {self._topics.decisions}, or their features in topic "
            f"{self._topics.features}, are not those that it makes now: transactions or labels have come, or gone, "
            "since it was interrupted, or decisions were deleted. Begin anew with --replace"
        )
