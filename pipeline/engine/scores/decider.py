"""Decides profiled transactions: the models, the policy, and the reasons of alerts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.rules import RuleSet
from pipeline.engine.encoding.row_columns import CARD, EVENT_US, INGESTED_US
from pipeline.engine.records.results import Result
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decision_messages import DecisionBatch, DecisionWriter
from pipeline.engine.scores.decisions import SELECTIONS, decided
from pipeline.engine.scores.feature_blocks import encode_features
from pipeline.engine.scores.profiled import read_rows
from pipeline.engine.scores.score import ScorePartition
from schemas.codec import timestamp_us
from schemas.records import Output, Record
from schemas.topics import ALERTS, DECISIONS


class Decider:
    """Holds nothing of a partition: what it decides depends on features, models, and what caps have counted before."""

    def __init__(self, base_currency: str, card_partitions: int, *, all_features: bool = False) -> None:
        """Decide nothing yet.

        Args:
            base_currency: Currency of ``amount_base``.
            card_partitions: Number of partitions of ``decisions`` and ``features``.
            all_features: Whether every decision has its features, and not only selected ones.
        """
        self._writer = DecisionWriter(base_currency, all_features=all_features)
        self._card_partitions = card_partitions

    def process(
        self, parts: Iterable[tuple[ScorePartition, Sequence[Record]]], models: ActiveModels, now: datetime
    ) -> Result:
        """Decide every transaction among the records of each partition, in offset order; all enter the states.

        The cost of a small batch is mostly per call, so that each call serves all partitions.

        Args:
            parts: States of partitions, each with its records of ``profiled``.
            models: What decides.
            now: When; stamped as ``decided_at``.

        Raises:
            KernelMismatch: As `ScorePartition.profile`.
        """
        result = Result()
        states, batches = [], []
        for state, records in parts:
            states.append(state)
            batches.append(records)
        rows = read_rows([record for records in batches for record in records])
        first, transactions = 0, [np.empty(0, np.intp)]
        for state, records in zip(states, batches, strict=True):
            transactions.append(state.profile(rows, range(first, first + len(records)), result))
            first += len(records)
        taken = np.concatenate(transactions)
        if len(taken):
            is_all = len(taken) == rows.subjects.rows
            features = rows.features if is_all else rows.features[taken]
            subjects = rows.subjects if is_all else rows.subjects.take(taken)
            ends = np.cumsum([len(rows_of_one) for rows_of_one in transactions[1:]])
            parts_of = list(zip(states, np.split(np.arange(len(taken)), ends[:-1]), strict=True))

            def bound(rules: RuleSet, hits: NDArray[np.object_], by_score: NDArray[np.bool_]) -> NDArray[np.object_]:
                times_us = subjects.wholes[EVENT_US]
                each = [state.caps.bounded(rules, hits[at], by_score[at], times_us[at]) for state, at in parts_of]
                return np.concatenate(each)

            batch = DecisionBatch(subjects, features, decided(models, features, subjects, bound), models, now)
            self._publish(batch, result)
        return result

    def _publish(self, batch: DecisionBatch, result: Result) -> None:
        subjects, selection = batch.subjects, batch.decided.selection
        keys = subjects.texts(CARD)
        result.outputs += [
            Output(DECISIONS, key, value) for key, value in zip(keys, self._writer.decisions(batch), strict=True)
        ]
        result.outputs += encode_features(batch, keys, self._card_partitions)
        result.latencies_s += ((timestamp_us(batch.now) - subjects.wholes[INGESTED_US]) / 1_000_000).tolist()
        rules = batch.models.evaluated_rules
        for numbers, count in Counter(batch.decided.hits.tolist()).items():
            for number in numbers:
                code = rules.code(number)
                if number >= len(rules.evaluated):
                    result.counts["capped_hit", code] += count
                elif number < rules.active:
                    result.counts["active_hit", code] += count
                else:
                    result.counts["shadow_hit", code] += count
        lists = batch.models.lists
        for listed, count in Counter(batch.decided.listed.tolist()).items() if len(lists) else ():
            for kind in {lists.kind(name) for name in listed.names}:
                result.counts["list_hit", kind] += count
            for kind in {lists.kind(name) for name, _ in listed.overruled}:
                result.counts["overruled", kind] += count
        alerted = np.flatnonzero(selection >= 0)
        result.counts["decision", "alert"] += len(alerted)
        result.counts["decision", "allow"] += subjects.rows - len(alerted)
        if len(alerted):
            raised = batch.take(alerted)
            for row, value in zip(alerted.tolist(), self._writer.alerts(raised), strict=True):
                result.outputs.append(Output(ALERTS, keys[row], value))
                result.counts["alert", SELECTIONS[selection[row]]] += 1
