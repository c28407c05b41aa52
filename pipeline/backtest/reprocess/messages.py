"""Decisions of a backtest as messages, in the wire form of those that are made live."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.records import Numbering
from pipeline.engine.records.partitioner import partitions_of
from pipeline.engine.records.subjects import (
    AMOUNT,
    AMOUNT_BASE,
    CARD,
    CASE,
    CASE_SEQUENCE,
    CURRENCY,
    ID,
    INGESTED_US,
    LOG_OFFSET,
    LOG_PARTITION,
    MERCHANT,
    PRODUCER_US,
    RATES,
    SOURCE,
    SOURCE_OFFSET,
    SOURCE_PARTITION,
    TYPE,
    Subjects,
)  # fmt: skip
from pipeline.engine.scores.decision_messages import NOT_READ, DecisionBatch, DecisionWriter
from pipeline.engine.scores.decisions import Decisions, PolicyResult
from pipeline.engine.scores.feature_blocks import encode_features
from pipeline.history.files import currency_decimals
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
        """Compile the writer.

        Args:
            numbering: Names of the records.
            merchant_partitions: Partitions of ``profiled``.
            rates: Table that has the decimals of currencies.
            all_features: Whether every decision has its features, and not only selected ones.
        """
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
            ID: taken.transaction_id, CARD: taken.card_id, MERCHANT: taken.merchant_id, CURRENCY: taken.currency,
            TYPE: taken.transaction_type,
        }  # fmt: skip
        strings = {column: values.to_pylist() for column, values in names.items()}
        starts_s = (decisions.case_start_us // US_PER_SECOND).tolist()
        texts = {column: [value.encode() for value in values] for column, values in strings.items()}
        texts[AMOUNT] = [*map(self._amount, taken.amount_minor.tolist(), strings[CURRENCY])]
        texts[RATES] = [decisions.rates_version.encode()] * n
        texts[SOURCE] = [TRANSACTIONS.name.encode()] * n
        texts[CASE] = [b"%s-%d" % case for case in zip(texts[CARD], starts_s, strict=True)]
        positions = np.array([*map(self.numbering.position, taken.row.tolist())], np.int64).reshape(n, 2)
        wholes: dict[int, NDArray[np.int64]] = {
            SOURCE_PARTITION: positions[:, 0],
            SOURCE_OFFSET: positions[:, 1],
            PRODUCER_US: taken.event_time_us,
            AMOUNT_BASE: taken.amount_base_minor,
            LOG_PARTITION: partitions_of(taken.merchant_id, self._merchant_partitions),
            LOG_OFFSET: np.full(n, NOT_READ),
            CASE_SEQUENCE: decisions.case_sequence,
            INGESTED_US: np.full(n, now_us),
        }
        return Subjects.from_columns(texts, wholes)

    def _amount(self, minor: int, currency: str) -> bytes:
        digits = self._digits.get(currency)
        return _encode(Decimal(minor).scaleb(-(currency_decimals(currency) if digits is None else digits)))
