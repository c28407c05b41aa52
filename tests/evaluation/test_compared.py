"""The pipeline's models under the Handbook's protocol, on a small file of the same days and columns."""

from dataclasses import astuple
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.evaluation.compared import HISTORY, ON_TOP, SAME_WEEK, command, own_models
from tests.evaluation.published import PUBLISHED, Figures, Weeks, models
from tests.helpers.handbook import handbook_frame

START = date(2018, 6, 10)
DAYS = (date(2018, 8, 15) - START).days


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared") / "transactions.parquet"
    handbook_frame(DAYS, seed=6, start=START).to_parquet(path)
    return path


def test_each_model_decides_the_week_of_the_test(file: Path) -> None:
    found = own_models(file)
    assert list(found) == [SAME_WEEK, HISTORY, SAME_WEEK + ON_TOP, HISTORY + ON_TOP]
    # Scores of other rows than those that are measured would rank like chance: with a precision of 0.05.
    assert all(figures.average_precision is not None and figures.average_precision > 0.1 for figures in found.values())
    assert len({astuple(figures) for figures in found.values()}) == len(found)


def test_cards_that_are_known_leave_the_test(file: Path) -> None:
    frame = handbook_frame(DAYS, seed=6, start=START)
    weeks = Weeks(frame)
    of_test = frame["TX_DATETIME"] >= "2018-08-08"
    known = frame[(frame["TX_FRAUD"] == 1) & frame["TX_DATETIME"].between("2018-07-25", "2018-07-31 23:59:59")]
    left_out = of_test & frame["CUSTOMER_ID"].isin(known["CUSTOMER_ID"])
    assert left_out.any()
    assert not weeks.test[left_out].any()
    assert weeks.measure(np.asarray(frame.loc[weeks.test, "TX_FRAUD"], float)).average_precision == 1.0


def test_the_table_has_what_was_published_and_what_came_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.evaluation.compared.own_models", lambda file: {"own": Figures(0.5, 0.25, 0.125)})
    lines = CliRunner().invoke(command, [str(file)], catch_exceptions=False).output.splitlines()
    assert len(lines) == 2 + len(PUBLISHED) + len(models()) + 1
    assert "| the Handbook's 15 | random forest, published | 0.867 | 0.658 | 0.287 |" in lines
    assert lines[-1] == "| the pipeline's | own | 0.500 | 0.250 | 0.125 |"
