"""The score agent's kernel: merchant windows and known fraud, both models, the policy, and the reasons."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import repeat
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.policy import Verdicts
from pipeline.decision.reasons import explain
from pipeline.engine.json_rows import RowEncoder
from pipeline.engine.layout import LAYOUT, OtherLayout, decode_values
from pipeline.engine.models import ActiveModels
from pipeline.engine.repeats import ReadInput, ReadInputs
from pipeline.engine.results import Result, UnreadableRecord
from pipeline.engine.state import LoadedState, StateDump
from pipeline.engine.written import encoded, positional, written
from pipeline.features.catalogue import CARD_FEATURES, FEATURES, KERNEL_VERSION
from pipeline.features.columns import Storage
from pipeline.features.identity import transaction_hash
from pipeline.features.kernel import MerchantWindows
from pipeline.scoring.blend import blend, sigmoid
from schemas.messages import (
    Alert,
    Decision,
    LogPosition,
    ModelScores,
    ProfiledLabel,
    ProfiledTransaction,
    Timestamp,
)
from schemas.records import Output, Record
from schemas.topics import ALERTS, DECISIONS

_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode = msgspec.json.Decoder(ProfiledTransaction | ProfiledLabel).decode
KNOWN_CODES = {"fraud": 1, "legitimate": 0}
KNOWN_NONE = 2


class _Stated(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a decision repeats of the producer's own record."""

    event_time: Timestamp
    amount: Decimal
    currency: str
    transaction_type: str = "purchase"


_decode_decision = msgspec.json.Decoder(Decision).decode
_decode_stated = msgspec.json.Decoder(_Stated).decode


class KernelMismatch(RuntimeError):
    """``profiled`` holds features of another kernel version than this worker's."""


class _Values(msgspec.Struct):
    layout: int
    windows: bytes
    inputs: list[ReadInput]


_DECODER: Final = msgspec.msgpack.Decoder(_Values)


class ScorePartition:
    """State of one partition of ``profiled``: a function of its records in offset order, and of nothing else."""

    def __init__(self, base_currency: str, storage: Storage | None = None, loaded: LoadedState | None = None) -> None:
        """Start empty, or from a dump.

        Raises `OtherLayout` where another release has made the dump.
        """
        self._base_currency = base_currency
        self._encode_features = RowEncoder(FEATURES).encode
        self._encode_model_scores = RowEncoder(ModelScores.__struct_fields__).encode
        self._windows = MerchantWindows(storage)
        self._inputs = ReadInputs()
        if loaded is not None:
            values = decode_values(loaded.values, _DECODER)
            if values.layout != LAYOUT:
                raise OtherLayout(f"the saved state has layout {values.layout}, not {LAYOUT}; fold it from the log")
            self._windows.load(values.windows, loaded.columns)
            self._inputs = ReadInputs(values.inputs)

    def settle(self) -> None:
        """The batch is committed."""
        self._windows.settle()
        self._inputs.settle()

    def undo(self) -> None:
        """The batch is not committed: take it back."""
        self._windows.undo()
        self._inputs.undo()

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the settled state."""
        windows, columns = self._windows.dump(full=full)
        return StateDump(msgspec.msgpack.encode(_Values(LAYOUT, windows, self._inputs.dump())), columns)

    def close(self) -> None:
        """Let go of the state."""
        self._windows.close()

    def fold(self, records: Sequence[Record]) -> None:
        """Let records enter the state without deciding anything."""
        messages = self._read(records, Result())
        self._profile([message for _, message in messages])

    def process(self, records: Sequence[Record], models: ActiveModels, now: datetime) -> Result:
        """Decide every transaction among ``records`` (one partition, in offset order).

        Raises `KernelMismatch` for features of another kernel; a fold, which does not use them, reads over those.
        """
        result = Result()
        read, features = self.profile(records, result)
        if read:
            self._decide(read, features, models, now, result)
        return result

    def profile(
        self, records: Sequence[Record], result: Result
    ) -> tuple[list[tuple[Record, ProfiledTransaction]], NDArray[np.float64]]:
        """The transactions among ``records`` with what models see of them, shape (n, len(FEATURES)).

        All of them enter the state; ``result`` counts them. Raises as `process`.
        """
        read = self._read(records, result)
        if not read:
            return [], np.empty((0, len(FEATURES)))
        merchant = self._profile([message for _, message in read])
        rows = [i for i, (_, message) in enumerate(read) if isinstance(message, ProfiledTransaction)]
        result.counts["label", "profiled"] += len(read) - len(rows)
        decided = [(record, message) for record, message in read if isinstance(message, ProfiledTransaction)]
        return decided, _features(decided, merchant[rows])

    def _read(
        self, records: Sequence[Record], result: Result
    ) -> list[tuple[Record, ProfiledTransaction | ProfiledLabel]]:
        read = []
        for record in records:
            try:
                message = _decode(record.value or b"")
            except msgspec.MsgspecError as error:
                raise UnreadableRecord(record, error) from error
            if isinstance(message, ProfiledTransaction) and self._inputs.is_repeat(message):
                result.counts["duplicate", ""] += 1
                continue
            read.append((record, message))
        return read

    def _profile(self, messages: Sequence[ProfiledTransaction | ProfiledLabel]) -> NDArray[np.float64]:
        n = len(messages)
        kinds, known = np.zeros(n, np.uint8), np.zeros(n, np.int8)
        identities, amounts = np.zeros(n, np.uint64), np.zeros(n, np.int64)
        counts, known_at_us = np.zeros(n, np.bool_), np.zeros(n, np.int64)
        for i, message in enumerate(messages):
            if isinstance(message, ProfiledTransaction):
                amounts[i], counts[i] = message.amount_base_minor, message.counts
            else:
                kinds[i], known_at_us[i] = 1, message.known_at_us
                known[i] = KNOWN_CODES.get(message.known, KNOWN_NONE)
                identities[i] = transaction_hash(message.card_id, message.transaction_id)
        return self._windows.profile(
            kinds,
            [message.merchant_id for message in messages],
            identities,
            np.array([message.event_time_us for message in messages], np.int64),
            amounts,
            counts,
            known,
            known_at_us,
        )

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
        identities = np.array(
            [transaction_hash(message.card_id, message.transaction_id) for _, message in read], np.uint64
        )
        verdicts = models.policy.decide(score, features, identities)
        messages = [message for _, message in read]
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
        stated = [_decode_stated(message.transaction) for message in messages]
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


def _features(read: Sequence[tuple[Record, ProfiledTransaction]], merchant: NDArray[np.float64]) -> NDArray[np.float64]:
    # First, since another kernel may have another number of features too.
    for record, message in read:
        if message.kernel != KERNEL_VERSION:
            raise KernelMismatch(
                f"{record.topic} partition {record.partition} offset {record.offset} was profiled by kernel "
                f"{message.kernel}, this worker has {KERNEL_VERSION}: run card and score agents of one version, "
                "and let the score agent finish the log before an upgrade"
            )
    n = len(read)
    features = np.empty((n, len(FEATURES)))
    packed = b"".join([message.card_features for _, message in read])
    features[:, : len(CARD_FEATURES)] = np.frombuffer(packed, "<f8").reshape(n, len(CARD_FEATURES))
    features[:, len(CARD_FEATURES) :] = merchant
    return features
