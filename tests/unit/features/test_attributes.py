"""A declared attribute is a feature everywhere: live, in files and exports, in trainings, examples and reasons."""

import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.features import attributes
from pipeline.features.active import declare
from pipeline.features.attributes import attribute_columns
from pipeline.features.declaration import Declaration
from pipeline.history import files
from pipeline.history.canonical_columns import numbers
from pipeline.history.files import resolve_mapping
from tests.helpers.declared_attributes import FEATURE_NAMES, NAMES
from tests.helpers.worker import printed_json


@pytest.fixture(scope="module")
def decided() -> dict[str, Any]:
    """The report of a process that declares two."""
    found: dict[str, Any] = printed_json("tests.helpers.declared_attributes")
    return found


def test_a_decision_has_what_the_producer_states(decided: dict[str, Any]) -> None:
    given = [[None if row is None else row.get(name) for name in NAMES] for row in decided["given"]]
    assert decided["live"] == given
    assert {row[0] is None for row in given} == {True, False}


def test_live_files_and_exports_agree(decided: dict[str, Any]) -> None:
    assert decided["unequal"] == decided["untrained"] == []
    assert decided["live_scores"] == decided["file_scores"] == decided["export_scores"]


def test_trees_use_it_by_default(decided: dict[str, Any]) -> None:
    assert tuple(decided["defaults"][-len(NAMES) :]) != FEATURE_NAMES, "those of merchants stay behind them"
    assert {*FEATURE_NAMES} < {*decided["defaults"]}
    assert decided["gain_share"] > 0.5


def test_online_models_learn_it(decided: dict[str, Any]) -> None:
    assert decided["weights"]["attribute_device_risk"] != 0.0
    assert decided["weights"]["no attribute_device_risk"] != 0.0
    low, high = decided["classifier"]
    assert high > low + 1.0
    known = {label for label, _ in decided["examples"]}
    assert {"fraud", "legitimate"} <= known
    assert any(value is not None for _, value in decided["examples"])


def test_it_is_a_reason_in_its_own_words(decided: dict[str, Any]) -> None:
    sentences = {sentence for code, sentence in decided["reasons"] if code == "PRODUCER_ATTRIBUTES"}
    beginning = "What the producer sends resembles earlier fraud, most of all the device risk by the producer ("
    assert any(sentence.startswith(beginning) for sentence in sentences)
    assert f"{beginning}none)." in sentences


def test_only_numbers_of_declared_numbers_count_and_only_texts_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "ATTRIBUTES", ("a", "b"))
    monkeypatch.setattr(attributes.ACTIVE, "texts", ("d",))
    found = attribute_columns([{"a": 1.5, "c": 2.0, "d": "x"}, {"b": "7", "a": None}, None, {"b": -1e300, "d": 1.0}])
    assert found.numbers is not None
    np.testing.assert_array_equal(found.numbers, [[1.5, math.nan], [math.nan] * 2, [math.nan] * 2, [math.nan, -1e300]])
    assert {name: column.to_pylist() for name, column in found.texts.items()} == {"d": ["x", None, None, None]}
    monkeypatch.setattr(attributes, "ATTRIBUTES", ())
    assert attribute_columns([{"a": 1.5}]).numbers is None


def test_a_declaration_comes_before_the_catalogue() -> None:
    assert "pipeline.features.catalogue" in sys.modules
    with pytest.raises(RuntimeError, match="features are declared before"):
        declare(Declaration())


def test_a_column_of_another_field_is_no_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.csv"
    path.write_text("transaction_id,event_time,card_id,merchant_id,amount,fraud,risk,attribute_score\n")
    names = ("fraud", "amount", "risk", "score", "absent")
    monkeypatch.setattr(files, "COLUMNS", {f"attribute_{name}": name for name in names})
    monkeypatch.setattr(files, "CANONICAL_ATTRIBUTES", {"attribute_score": "attribute_score"})
    columns = resolve_mapping(path).columns
    assert {name: column for name, column in columns.items() if name.startswith("attribute_")} == {
        "attribute_risk": "risk",
        "attribute_score": "attribute_score",
    }


def test_a_column_of_numbers_may_lack_some() -> None:
    values, wrong = numbers(pa.chunked_array([pa.array(["1.5", None, "x", "inf", "-2e3"])]))
    np.testing.assert_array_equal(values, [1.5, math.nan, math.nan, math.inf, -2_000.0])
    assert wrong.tolist() == [False, False, True, True, False]
    for others in ([True, False, None], [datetime(2024, 3, 1, tzinfo=UTC), None, None]):
        assert numbers(pa.chunked_array([pa.array(others)]))[1].any()
    values, wrong = numbers(pa.chunked_array([pa.array([1.0, math.nan, None])]))
    np.testing.assert_array_equal(values, [1.0, math.nan, math.nan])
    assert not wrong.any()
