"""Whatever is declared, workers, backtests and trainings compute the same, and what the slow reference does."""

import os
import tomllib

import pandas as pd
import pytest

from pipeline.features.feature_set import FeatureSet
from pipeline.models.declaration_changes import refuse_other_meaning
from pipeline.settings.features_file import read_features_file
from tests.chaos.declarations import declarations_of
from tests.helpers.declarations import MOST_INPUTS, as_toml, random_declaration
from tests.helpers.worker import printed_json
from tests.reference.declared import DAY, SECOND, declared_features, whole

TABLES = int(os.environ.get("DECLARATIONS", "0"))
"""Feature tables of a long run, as of ``DECLARATIONS=1000 make pytest ARGS=tests/property/test_declarations.py``."""
TABLES_OF_ONE, ROWS = (40, 10_000) if TABLES else (20, 700)
SEEDS = range(101, 101 + -(-TABLES // TABLES_OF_ONE)) if TABLES else range(3)
LIMIT_S = 1_800.0
"""Limit for a process; of the long run one takes two minutes on an idle machine."""


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_declaration_has_the_same_values_everywhere(seed: int) -> None:
    found = printed_json("tests.helpers.declared_windows", str(seed), str(TABLES_OF_ONE), str(ROWS))
    assert found["declared"] >= TABLES_OF_ONE // 2
    assert set(found["compared"]) == {
        "live and a backtest", "a backtest and the reference", "a training and the reference",
    }  # fmt: skip
    assert min(found["compared"].values()) >= found["declared"] * ROWS
    assert found["different"] == 0, found["differences"]


def test_declarations_differ_and_are_toml() -> None:
    declarations = [random_declaration(seed, 40) for seed in range(30)]
    assert all(tomllib.loads(as_toml(declaration)) == declaration for declaration in declarations)
    tables = [table for declaration in declarations for table in declaration["features"]]
    assert len(tables) == 1_200
    assert {table["aggregate"] for table in tables} == {
        "count", "sum", "mean", "std", "min", "max", "distinct", "seconds_since_last", "seconds_since_first", "share",
        "usual_hour", "new", "ratio",
    }  # fmt: skip
    filters = {table["where"] for table in tables if "where" in table}
    assert len(filters) > 10 * MOST_INPUTS
    assert any("card_merchant_count" in where for where in filters)


@pytest.mark.parametrize("seed", range(1, 21))
def test_declarations_that_follow_each_other_are_accepted_and_share_features(seed: int) -> None:
    made = [FeatureSet(read_features_file(as_toml(one).encode(), "own.toml")) for one in declarations_of(seed)]
    for number, features in enumerate(made):
        refuse_other_meaning(features, [before.declaration for before in made[:number]])
    assert made[0].kernel_version != made[1].kernel_version
    assert len(set.intersection(*({*features.features} for features in made))) > 1


def history(*rows: tuple[float, str, int, str | None]) -> pd.DataFrame:
    """Return transactions of a card: days, merchant, cents and country."""
    frame = pd.DataFrame(rows, columns=["day", "merchant_id", "amount_minor", "country"])
    return frame.assign(
        event_time_us=(frame["day"] * DAY).astype("int64"), card_id="c", counts=True, card_partition=0,
        merchant_partition=0, amount=frame["amount_minor"] / 100, hour=frame["day"] * 24 % 24,
    )  # fmt: skip


def reference(rows: pd.DataFrame, **table: object) -> list[str]:
    """Return the values of a feature of the card over a day."""
    declared = {"features": [{"entity": "card", "windows": ["1d"], "name": "f", **table}]}
    return declared_features(declared, rows)["card_f_1d"].map("{:g}".format).tolist()


def test_the_reference_by_hand() -> None:
    rows = history(
        (0, "m", 100, "BE"), (0.5, "n", 300, None), (0.75, "m", 200, "BE"), (1.5, "m", 50, "FR"), (1, "n", 1, "BE")
    )
    # The second is a day old, and so out of the window; the last one is late, and sees what happened before it.
    assert reference(rows, aggregate="count") == ["0", "1", "2", "1", "2"]
    assert reference(rows, aggregate="sum") == ["0", "1", "4", "2", "5"]
    assert reference(rows, aggregate="mean") == ["nan", "1", "2", "2", "2.5"]
    assert reference(rows, aggregate="std") == ["nan", "0", "1", "0", "0.5"]
    assert reference(rows, aggregate="max", where="merchant_id = 'm'") == ["nan", "1", "1", "2", "2"]
    assert reference(rows, aggregate="share", where="country = 'BE'") == ["nan", "1", "0.5", "1", "0.5"]
    assert reference(rows, aggregate="distinct", field="country") == ["0", "1", "1", "1", "1"]
    assert reference(rows, aggregate="new", field="country") == ["1", "nan", "0", "1", "0"]
    assert reference(rows, aggregate="seconds_since_first", field="country") == [
        "nan",
        "43200",
        "64800",
        "64800",
        "21600",
    ]
    # Noon and midnight have no mean.
    assert reference(rows, aggregate="usual_hour") == ["nan", "12", "nan", "6", "9"]


def test_windows_begin_behind_their_edge() -> None:
    rows = history((0, "m", 100, "BE"), (1, "m", 100, "BE"))
    assert reference(rows, aggregate="count") == ["0", "0"]
    rows["event_time_us"] -= [0, 1]
    assert reference(rows, aggregate="count") == ["0", "1"]
    # As late as the longest window and a week, after another card's: it enters no window.
    late = history((0, "m", 100, "BE"), (0, "m", 100, "BE"), (0.5, "m", 100, "BE"))
    newest = history((37, "m", 100, "BE")).assign(card_id="d")
    assert reference(pd.concat([newest, late], ignore_index=True), aggregate="count") == ["0"] * 4
    late["event_time_us"] += SECOND
    assert reference(pd.concat([newest, late], ignore_index=True), aggregate="count") == ["0", "0", "1", "2"]


def test_steps_are_rounded_half_to_even() -> None:
    assert [whole(value, 1_000_000) for value in (5e-7, 1.5e-6, -2.5e-6, 1e300, float("nan"))] == [0, 2, -2, None, None]
