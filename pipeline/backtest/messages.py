"""Decisions of a backtest as messages, in the wire form of those that are made live."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import repeat
from typing import Any, Final

import msgspec
import numpy as np

from pipeline.backtest.records import Numbering
from pipeline.engine.decisions import SELECTIONS, Decisions
from pipeline.engine.json_rows import RowEncoder
from pipeline.engine.placement import partition_of
from pipeline.engine.written import encoded, positional, written
from pipeline.features.catalogue import FEATURES, US_PER_SECOND
from pipeline.scoring.blend import sigmoid
from pipeline.sources import currency_decimals
from schemas.messages import Decision, LogPosition, ModelScores, RecordPosition
from schemas.money import RateTable
from schemas.topics import TRANSACTIONS

NOT_READ: Final = -1
"""In place of an offset in ``profiled``, which a backtest does not go through."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder(decimal_format="number").encode


class DecisionWriter:
    """Writes decisions about transactions of topics whose records ``numbering`` names."""

    def __init__(self, numbering: Numbering, merchant_partitions: int, rates: RateTable) -> None:
        """``rates`` tells how many decimals the currencies have that it knows."""
        self.numbering, self._merchant_partitions = numbering, merchant_partitions
        self._digits = {code: rate.digits for code, rate in rates.currencies.items()}
        self._encode_features = RowEncoder(FEATURES).encode
        self._encode_model_scores = RowEncoder(ModelScores.__struct_fields__).encode

    def values(self, decisions: Decisions, now: datetime) -> Iterator[bytes]:
        """The value of each decision, which is made ``now``.

        Times are in UTC and amounts have the currency's digits, whatever the producer wrote. ``log`` has the partition
        in which the merchant belongs, and `NOT_READ`.
        """
        taken = decisions.transactions
        cards, merchants = taken.card_id.to_pylist(), taken.merchant_id.to_pylist()
        currencies = taken.currency.to_pylist()
        places = map(self.numbering.place, taken.row.tolist())
        selections = [SELECTIONS[code] if code >= 0 else None for code in decisions.selection.tolist()]
        now_json = msgspec.Raw(_encode(now))
        scores = decisions.logit, decisions.river_logit
        columns: dict[str, Iterable[Any]] = {
            "transaction_id": taken.transaction_id.to_pylist(),
            "card_id": cards,
            "merchant_id": merchants,
            "event_time": [_EPOCH + timedelta(microseconds=at_us) for at_us in taken.event_time_us.tolist()],
            "amount": map(self._amount, taken.amount_minor.tolist(), currencies),
            "currency": currencies,
            "amount_base": (taken.amount_base_minor / 100).tolist(),
            "base_currency": repeat(decisions.base_currency),
            "transaction_type": taken.transaction_type.to_pylist(),
            "score": decisions.score.tolist(),
            "model_scores": self._encode_model_scores(np.column_stack([sigmoid(of) for of in scores])),
            "logit": decisions.logit.tolist(),
            "action": ["allow" if selection is None else "alert" for selection in selections],
            "selection": selections,
            "selection_probability": decisions.selection_probability.tolist(),
            "threshold": repeat(decisions.models.policy.threshold),
            "features": self._encode_features(decisions.features),
            "versions": repeat(msgspec.Raw(_encode(decisions.models.versions(decisions.rates_version)))),
            "source": [positional(RecordPosition)(TRANSACTIONS.name, *place) for place in places],
            "log": [positional(LogPosition)(self._merchant_partition(one), NOT_READ) for one in merchants],
            "case_id": [
                f"{card}-{start_us // US_PER_SECOND}"
                for card, start_us in zip(cards, decisions.case_start_us.tolist(), strict=True)
            ],
            "case_sequence": decisions.case_sequence.tolist(),
            "ingested_at": repeat(now_json),
            "decided_at": repeat(now_json),
        }
        return encoded(written(Decision, columns))

    def _amount(self, minor: int, currency: str) -> Decimal:
        digits = self._digits.get(currency)
        return Decimal(minor).scaleb(-(currency_decimals(currency) if digits is None else digits))

    def _merchant_partition(self, merchant_id: str) -> int:
        return partition_of(merchant_id, self._merchant_partitions)
