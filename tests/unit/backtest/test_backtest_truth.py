"""What labels say about decisions: the one that holds, and what the unlabelled leave open."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from pipeline.backtest.labels.ground_truth import (
    GroundTruth,
    ground_truth,
    precision_bounds,
    recall_bounds,
)
from pipeline.learning.labels import KNOWN, UNSEEN, StateNumbers, known_value, resolve_numbers, source_rank
from pipeline.learning.regimes import NEVER_US
from schemas.codec import timestamp_us

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
COLUMNS = ["transaction_id", "card_id", "label", "source", "labelled_at"]


def labels(rows: Sequence[tuple[object, ...]], columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns))


def decisions(*names: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(names, columns=["transaction_id", "card_id"]).astype("string[pyarrow]")


@pytest.mark.parametrize("seed", range(8))
def test_the_label_that_holds_is_the_one_that_holds_live(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = labels(
        [
            (
                f"t{rng.integers(12)}", f"c{rng.integers(2)}",
                str(rng.choice(["fraud", "legitimate", "disputed", "of a later release"])),
                str(rng.choice(["audit", "analyst", "chargeback", "issuer", "rule", "bank"])),
                NOON + timedelta(hours=int(rng.integers(4))),
            )
            for _ in range(200)
        ]
    )  # fmt: skip
    states: dict[tuple[str, str], StateNumbers] = {}
    for row in frame.itertuples(index=False):
        name, known = (row.transaction_id, row.card_id), KNOWN.index(known_value(row.label))
        states[name], _ = resolve_numbers(
            states.get(name, UNSEEN), source_rank(row.source), timestamp_us(row.labelled_at), known
        )
    truth = ground_truth(decisions(*states), frame)
    found = np.where(truth.fraud, "fraud", np.where(truth.legitimate, "legitimate", "none")).tolist()
    assert found == [KNOWN[known] for _, _, known, _ in states.values()]
    assert len(set(found)) == 3
    reported = truth.known_us[~truth.unlabelled].tolist()
    assert reported == [at_us for _, at_us, known, _ in states.values() if KNOWN[known] != "none"]
    assert (truth.known_us[truth.unlabelled] == NEVER_US).all()


def test_a_card_of_its_own_makes_another_transaction() -> None:
    frame = labels(
        [("t", "one", "fraud", "chargeback", NOON, "card"), ("t", "two", "legitimate", "analyst", NOON, None)],
        [*COLUMNS, "fraud_type"],
    )
    truth = ground_truth(decisions(("t", "two"), ("t", "three"), ("t", "one")), frame)
    assert truth.fraud.tolist() == [False, False, True]
    assert truth.legitimate.tolist() == [True, False, False]
    assert truth.source.tolist() == ["analyst", "", "chargeback"]
    assert truth.fraud_type.tolist() == ["", "", "card"]


def test_without_labels_nothing_is_known() -> None:
    truth = ground_truth(decisions(("t", "c")), labels([]))
    assert truth.unlabelled.tolist() == [True]
    assert ground_truth(decisions(("t", "c")), labels([("t", "c", "fraud", "rule", NOON)])).unlabelled.tolist() == [
        True
    ]


def test_bounds_hold_for_every_way_in_which_the_unlabelled_can_turn_out() -> None:
    known = np.array([0, 1, 2, 2, 1, 0, 0, 0, 2])
    alert = np.array([True, True, True, True, False, False, False, True, False])
    none = np.full(9, "", object)
    truth = GroundTruth(known == 2, known == 1, none, none, np.full(9, NEVER_US))
    unknown = np.flatnonzero(known == 0)
    precisions, recalls = [], []
    for outcome in range(2 ** len(unknown)):
        fraud = known == 2
        fraud[unknown] = [bool(outcome >> bit & 1) for bit in range(len(unknown))]
        precisions.append((fraud & alert).sum() / alert.sum())
        recalls.append((fraud & alert).sum() / fraud.sum())
    assert precision_bounds(truth, alert) == (precisions[0], precisions[-1], min(precisions), max(precisions))
    assert recall_bounds(truth, alert) == (recalls[0], recalls[-1], min(recalls), max(recalls))
    assert min(recalls) < recalls[0] < max(recalls)


def test_bounds_of_nothing_have_no_meaning() -> None:
    none = np.full(2, "", object)
    truth = GroundTruth(np.zeros(2, bool), np.ones(2, bool), none, none, np.full(2, NEVER_US))
    assert precision_bounds(truth, np.zeros(2, bool)) == (None,) * 4
    assert recall_bounds(truth, np.ones(2, bool)) == (None,) * 4
