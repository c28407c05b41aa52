"""The mapping of a file of transactions, and warnings about the file before a command reads it."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipeline.commands.file_mapping import file_mapping
from pipeline.engine.records.whole_amounts import LEAST_AMOUNTS
from pipeline.settings import Settings
from tests.helpers.mappings import CENTS


def file_of(path: Path, amounts: list[object], **columns: object) -> Path:
    """A file with such amounts."""
    rows = range(len(amounts))
    frame = pd.DataFrame(
        {
            "transaction_id": [f"t{row}" for row in rows],
            "event_time": "2024-01-01T00:00:00Z",
            "card_id": "c",
            "merchant_id": "m",
            "amount": amounts,
            **columns,
        }
    )
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
    return path


def said(file: Path, capsys: pytest.CaptureFixture[str], mapping: Path | None = None) -> str:
    file_mapping(file, mapping, Settings())
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("kind", [int, float, str])
def test_a_file_with_cents_for_euros_gets_a_warning(
    name: str, kind: Callable[[int], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cents = [kind(1_234 + row) for row in range(LEAST_AMOUNTS)]
    sentence = f"Warning: none of {LEAST_AMOUNTS:,} amounts in EUR has decimals."
    assert said(file_of(tmp_path / name, cents), capsys).startswith(sentence)
    assert said(file_of(tmp_path / name, cents, currency="JPY"), capsys) == ""
    assert said(file_of(tmp_path / name, cents[1:]), capsys) == ""
    assert said(file_of(tmp_path / name, [*cents, "12.34" if kind is str else 12.34]), capsys) == ""


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_mapping_that_forgets_minor_units_gets_a_warning(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = file_of(tmp_path / name, [1_234 + row for row in range(LEAST_AMOUNTS)], currency="EUR")
    (right := tmp_path / "right.toml").write_bytes(CENTS)
    (wrong := tmp_path / "wrong.toml").write_bytes(CENTS.replace(b", minor = true", b""))
    assert said(file, capsys, right) == ""
    assert said(file, capsys, wrong).startswith(f"Warning: none of {LEAST_AMOUNTS:,} amounts in EUR has decimals.")


def test_each_currency_of_a_file_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    amounts: list[object] = [12.34, 1_999.0, 500.0] * LEAST_AMOUNTS
    amounts[7:10] = [float("nan"), float("inf"), 1e300]
    file = file_of(tmp_path / "a.parquet", amounts, currency=["EUR", "JPY", "USD"] * LEAST_AMOUNTS)
    assert said(file, capsys) == ""
    file = file_of(tmp_path / "a.parquet", amounts * 2, currency=["EUR", "JPY", "USD"] * LEAST_AMOUNTS * 2)
    assert [line.split(" has")[0] for line in said(file, capsys).splitlines()] == [
        f"Warning: none of {2 * LEAST_AMOUNTS - 2:,} amounts in USD"
    ]
