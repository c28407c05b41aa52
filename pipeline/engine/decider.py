"""Decides profiled transactions: both models, the policy, and the reasons of alerts."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.policy import Verdicts
from pipeline.decision.reasons import explain
from pipeline.engine.json_rows import RowEncoder
from pipeline.engine.models import ActiveModels
from pipeline.engine.results import ForeignRecord, Result
from pipeline.engine.score import ScorePartition
from pipeline.engine.written import encoded, positional, written
from pipeline.features.catalogue import FEATURES
from pipeline.features.identity import transaction_hash
from pipeline.scoring.blend import blend, sigmoid
from schemas.errors import UNREADABLE
from schemas.messages import Alert, Decision, LogPosition, ModelScores, ProfiledTransaction, Timestamp
from schemas.records import Output, Record
from schemas.topics import ALERTS, DECISIONS

_encode = msgspec.json.Encoder(decimal_format="number").encode


class _Stated(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a decision repeats of the producer's own record."""

    event_time: Timestamp
    amount: Decimal
    currency: str
    transaction_type: str = "purchase"


_decode_decision = msgspec.json.Decoder(Decision).decode
_decode_stated = msgspec.json.Decoder(_Stated).decode


class Decider:
    """Holds nothing of a partition: what it decides depends on a transaction's features and on the models alone."""

    def __init__(self, base_currency: str) -> None:
        self._base_currency = base_currency
        self._encode_features = RowEncoder(FEATURES).encode
        self._encode_model_scores = RowEncoder(ModelScores.__struct_fields__).encode

    def process(
        self, parts: Iterable[tuple[ScorePartition, Sequence[Record]]], models: ActiveModels, now: datetime
    ) -> Result:
        """Decide every transaction among the records of each partition, in offset order; all enter the states.

        Features come partition by partition, and what follows from them for all at once: most of what a small batch
        takes is taken by a call, whatever it is called for. Raises as `ScorePartition.profile`.
        """
        result = Result()
        read: list[tuple[Record, ProfiledTransaction]] = []
        blocks: list[NDArray[np.float64]] = []
        for state, records in parts:
            transactions, features = state.profile(records, result)
            if transactions:
                read += transactions
                blocks.append(features)
        if read:
            self._decide(read, blocks[0] if len(blocks) == 1 else np.concatenate(blocks), models, now, result)
        return result

    def _decide(
        self,
        read: Sequence[tuple[Record, ProfiledTransaction]],
        features: NDArray[np.float64],
        models: ActiveModels,
        now: datetime,
        result: Result,
    ) -> None:
        n = len(read)
        logit = models.lightgbm.logit(features)
        river_logit = models.river.logit(features, logit)
        score = blend(logit, river_logit, models.policy.blend)
        messages = [message for _, message in read]
        identities = np.array([transaction_hash(one.card_id, one.transaction_id) for one in messages], np.uint64)
        verdicts = models.policy.decide(score, features, identities)
        decisions = self._written(read, features, logit, river_logit, score, verdicts, models, now)
        values = list(encoded(decisions))
        result.outputs += [
            Output(DECISIONS, message.card_id.encode(), value) for message, value in zip(messages, values, strict=True)
        ]
        result.latencies_s += [(now - message.ingested_at).total_seconds() for message in messages]
        alerted = np.flatnonzero(verdicts.alert).tolist()
        result.counts["decision", "alert"] += len(alerted)
        result.counts["decision", "allow"] += n - len(alerted)
        if alerted:
            decided = [_decode_decision(values[row]) for row in alerted]
            self._raise_alerts(decided, features[alerted], logit[alerted], models, now, result)

    def _written(
        self,
        read: Sequence[tuple[Record, ProfiledTransaction]],
        features: NDArray[np.float64],
        logit: NDArray[np.float64],
        river_logit: NDArray[np.float64],
        score: NDArray[np.float64],
        verdicts: Verdicts,
        models: ActiveModels,
        now: datetime,
    ) -> Iterator[Any]:
        """Decisions for the encoder, made of columns; what is the same in all of them is encoded once."""
        records, messages = [record for record, _ in read], [message for _, message in read]
        try:
            stated = [_decode_stated(message.transaction) for message in messages]
        except UNREADABLE as error:
            raise ForeignRecord(f"what a producer wrote cannot be read in it: {error}") from error
        versions = {
            rates: msgspec.Raw(_encode(models.versions(rates)))
            for rates in {message.rates_version for message in messages}
        }
        columns: dict[str, Iterable[Any]] = {
            "transaction_id": [message.transaction_id for message in messages],
            "card_id": [message.card_id for message in messages],
            "merchant_id": [message.merchant_id for message in messages],
            "event_time": [one.event_time for one in stated],
            "amount": [one.amount for one in stated],
            "currency": [one.currency for one in stated],
            "amount_base": [message.amount_base_minor / 100 for message in messages],
            "base_currency": repeat(self._base_currency),
            "transaction_type": [one.transaction_type for one in stated],
            "score": score.tolist(),
            "model_scores": self._encode_model_scores(np.column_stack([sigmoid(logit), sigmoid(river_logit)])),
            "logit": logit.tolist(),
            "action": ["allow" if selection is None else "alert" for selection in verdicts.selection],
            "selection": verdicts.selection,
            "selection_probability": verdicts.selection_probability.tolist(),
            "threshold": repeat(models.policy.threshold),
            "features": self._encode_features(features),
            "versions": [versions[message.rates_version] for message in messages],
            "source": [message.source for message in messages],
            "log": map(
                positional(LogPosition), [record.partition for record in records], [record.offset for record in records]
            ),
            "case_id": [message.case_id for message in messages],
            "case_sequence": [message.case_sequence for message in messages],
            "ingested_at": [message.ingested_at for message in messages],
            "decided_at": repeat(msgspec.Raw(_encode(now))),
        }
        return written(Decision, columns)

    def _raise_alerts(
        self,
        decisions: Sequence[Decision],
        features: NDArray[np.float64],
        logit: NDArray[np.float64],
        models: ActiveModels,
        now: datetime,
        result: Result,
    ) -> None:
        reasons = explain(features, logit, models, [decision.selection for decision in decisions], self._base_currency)
        for decision, why in zip(decisions, reasons, strict=True):
            alert = Alert(
                alert_id=f"{transaction_hash(decision.card_id, decision.transaction_id):016x}",
                case_id=decision.case_id,
                case_sequence=decision.case_sequence,
                severity=round(decision.score * decision.amount_base, 2),
                raised_at=now,
                transaction_id=decision.transaction_id,
                card_id=decision.card_id,
                merchant_id=decision.merchant_id,
                event_time=decision.event_time,
                amount=decision.amount,
                currency=decision.currency,
                amount_base=decision.amount_base,
                base_currency=decision.base_currency,
                score=decision.score,
                model_scores=decision.model_scores,
                threshold=decision.threshold,
                selection=decision.selection or "score",
                reasons=why,
                versions=decision.versions,
                source=decision.source,
                log=decision.log,
            )
            result.outputs.append(Output(ALERTS, decision.card_id.encode(), _encode(alert)))
            result.counts["alert", alert.selection] += 1
