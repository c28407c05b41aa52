"""Writes a run of reprocess behind the part of it that its topics hold."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.merge import Numbering
from pipeline.backtest.reprocess.written_runs import DECIDED, RUN, Fingerprint, Present, ReprocessError, RunTopics
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.records.partitioner import partitions_of
from pipeline.engine.records.subjects import Subjects
from pipeline.engine.scores.decision_messages import NOT_READ, DecisionBatch, DecisionWriter
from pipeline.engine.scores.decisions import Decisions, PolicyResult
from pipeline.engine.scores.feature_blocks import encode_features
from pipeline.history.files import currency_decimals
from pipeline.kafka.writers.producer import TopicRecord, TransactionalProducer
from schemas.codec import timestamp_us
from schemas.money import RateTable
from schemas.records import Output
from schemas.times import US_PER_SECOND
from schemas.topics import TRANSACTIONS

_encode = msgspec.json.Encoder(decimal_format="number").encode


class DecisionMessages:
    """Decisions about transactions of topics whose records ``numbering`` names."""

    def __init__(
        self, numbering: Numbering, merchant_partitions: int, rates: RateTable, *, all_features: bool = False
    ) -> None:
        """``merchant_partitions`` are those of ``profiled``; ``rates`` has the decimals of currencies."""
        self.numbering, self._merchant_partitions = numbering, merchant_partitions
        self._digits = {code: rate.digits for code, rate in rates.currencies.items()}
        self._writer = DecisionWriter(rates.base, all_features=all_features)

    def batch(self, decisions: Decisions, now: datetime) -> DecisionBatch:
        """Return decisions as they are written, which are made ``now``.

        Times are in UTC and amounts have the currency's digits, whatever the producer wrote. ``log`` has the partition
        in which the merchant belongs, and `NOT_READ`.
        """
        outcome = PolicyResult(*(getattr(decisions, name) for name in PolicyResult._fields))
        subjects = self._subjects(decisions, timestamp_us(now))
        return DecisionBatch(subjects, decisions.features, outcome, decisions.models, now)

    def values(self, batch: DecisionBatch) -> Iterator[bytes]:
        """Write the value of each decision."""
        return self._writer.decisions(batch)

    def blocks(self, batch: DecisionBatch, cards: Sequence[bytes]) -> list[Output]:
        """Return the blocks of features, each with the partition of its cards."""
        return encode_features(batch, cards, self.numbering.partitions)

    def _subjects(self, decisions: Decisions, now_us: int) -> Subjects:
        taken, n = decisions.transactions, len(decisions)
        names = {
            col.ID: taken.transaction_id, col.CARD: taken.card_id, col.MERCHANT: taken.merchant_id,
            col.CURRENCY: taken.currency, col.TYPE: taken.transaction_type,
        }  # fmt: skip
        strings = {column: values.to_pylist() for column, values in names.items()}
        starts_s = (decisions.case_start_us // US_PER_SECOND).tolist()
        texts = {column: [value.encode() for value in values] for column, values in strings.items()}
        texts[col.AMOUNT] = [*map(self._amount, taken.amount_minor.tolist(), strings[col.CURRENCY])]
        texts[col.RATES] = [decisions.rates_version.encode()] * n
        texts[col.SOURCE] = [TRANSACTIONS.name.encode()] * n
        texts[col.CASE] = [b"%s-%d" % case for case in zip(texts[col.CARD], starts_s, strict=True)]
        positions = np.array([*map(self.numbering.position, taken.row.tolist())], np.int64).reshape(n, 2)
        wholes: dict[int, NDArray[np.int64]] = {
            col.SOURCE_PARTITION: positions[:, 0],
            col.SOURCE_OFFSET: positions[:, 1],
            col.EVENT_US: taken.event_time_us,
            col.AMOUNT_BASE: taken.amount_base_minor,
            col.LOG_PARTITION: partitions_of(taken.merchant_id, self._merchant_partitions),
            col.LOG_OFFSET: np.full(n, NOT_READ),
            col.CASE_SEQUENCE: decisions.case_sequence,
            col.INGESTED_US: np.full(n, now_us),
        }
        return Subjects.from_columns(texts, wholes)

    def _amount(self, minor: int, currency: str) -> bytes:
        digits = self._digits.get(currency)
        return _encode(Decimal(minor).scaleb(-(currency_decimals(currency) if digits is None else digits)))


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
        """Prepare to write behind what is present, which is the beginning of the run.

        ``begun`` is called once the first transaction is there: what it replaces may go then, and not before. A range
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
        keys = batch.subjects.texts(col.CARD)
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
