"""The program for the ULB file, on a small file of the same layout."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from tests.evaluation.ulb import COLUMNS, COMPONENTS, INPUTS, main, read


def published(path: Path, rows: int) -> Path:
    """Write rows in which frauds lie elsewhere in some components, of the types that the published file has."""
    random = np.random.default_rng(5)
    fraud = random.random(rows) < 0.02
    values = random.normal(size=(rows, len(COMPONENTS)))
    values[fraud, :4] += 3.0
    frame = pd.DataFrame(values, columns=list(COMPONENTS))
    frame.insert(0, "Time", np.sort(random.integers(0, 172_792, rows)).astype(float))
    frame["Amount"], frame["Class"] = random.lognormal(3, 1, rows).round(2), fraud.astype(int)
    frame[list(COLUMNS)].to_csv(path, index=False)
    types = pd.read_csv(path).dtypes
    assert types.drop("Class").eq(np.float64).all()
    assert types["Class"] == np.int64
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return published(tmp_path / "creditcard.csv", rows=4_000)


@pytest.mark.parametrize("classifier", [None, "tests.unit.scoring.test_river_configured.scaled_regression"])
def test_it_tells_frauds_before_it_learns_them(file: Path, classifier: str | None) -> None:
    arguments = [str(file), *(["--classifier", classifier] if classifier else [])]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["rows"] == 4_000
    assert 0.9 < found["prequential_auc"] < 1.0
    assert found["prequential_log_loss"] < 0.2


def test_a_file_that_pandas_reads_in_several_parts_has_its_inputs(tmp_path: Path) -> None:
    inputs, fraud = read(published(tmp_path / "creditcard.csv", rows=40_000))
    assert inputs.shape == (40_000, len(INPUTS))
    assert 0 < fraud.mean() < 0.1


def test_another_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("Time,Amount\n0,1\n")
    result = CliRunner().invoke(main, [str(other)])
    assert result.exit_code == 1
    assert "lacks the columns V1, V2" in result.output
