"""Parts ``months`` and ``cold-start``: detection from month to month, and by how long a deployment has been running."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from tests.evaluation.detection import FRAUDS, MEASURES, Data, at, before, figures
from tests.evaluation.histories import History
from tests.evaluation.parts import Found, Part, Table, Unit, compared, markdown
from tests.evaluation.variants import recalls

MONTHS: Final = {
    "May": ("2018-05-01", "2018-06-01"),
    "June": ("2018-06-01", "2018-07-01"),
    "1 to 7 July": ("2018-07-01", "2018-07-08"),
}
FINAL_MONTHS: Final = {"8 to 31 July": ("2018-07-08", "2018-08-01"), "1 to 14 August": ("2018-08-01", "2018-08-15")}
NEW: Final = ("2018-06-24", "2018-07-08")
"""Days on which deployments of all ages are measured."""
AGES_DAYS: Final = (16, 18, 21, 28, 42, 56, 77)
"""Seven days of reports and seven of validation leave nothing to train on before."""


def months_units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for each month: the default, trained on what was known before it."""
    months = {**MONTHS, **(FINAL_MONTHS if final else {})}
    return [Unit(name, of_month, (file, *days)) for name, days in months.items() if name in only]


def of_month(file: Path, start: str, end: str) -> Found:
    """Return the figures of some days."""
    history = History.from_file(file, FRAUDS)
    return figures(history.data, history.scored(at(start), at(end)))


def months_tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield the measures of each month, and its recall."""
    yield markdown("Months", _HEAD, [[name, *_means(source)] for name, source in found.items()])
    yield recalls("Recall among the 100 highest scores of a day, by month", "days", found)


_HEAD: Final = ("days", "card precision@100", "transaction precision@100", "average precision")


def _means(row: Mapping[str, Any]) -> list[str]:
    return [f"{np.nanmean(row[measure]):.4f}" for measure in MEASURES]


def begun(file: Path, age_days: int, start: str, end: str) -> Found:
    """Return the figures of a deployment that began so many days before: nothing earlier is known to it."""
    frame = before(file, end)
    frame = frame[frame["TX_DATETIME"] >= pd.Timestamp(start) - timedelta(days=age_days)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "transactions.parquet")
        frame.to_parquet(path)
        history = History(Data(path), FRAUDS)
    return figures(history.data, history.scored(at(start), at(end)))


def cold_units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for each age; the same days are measured whether the final weeks are read or not."""
    del final
    return [Unit(f"{days} days", begun, (file, days, *NEW)) for days in AGES_DAYS if f"{days} days" in only]


def cold_tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield the measures by age, and what the longest history has more."""
    *_, longest = found.values()
    rows = [
        [name, *_means(source), "" if source is longest else compared(source[MEASURES[0]], longest[MEASURES[0]])]
        for name, source in found.items()
    ]
    yield markdown("Cold start", ("data", *_HEAD[1:], "card precision against the longest"), rows)


MONTHS_PART: Final = Part((*MONTHS, *FINAL_MONTHS), months_units, months_tables)
COLD_PART: Final = Part(tuple(f"{days} days" for days in AGES_DAYS), cold_units, cold_tables)
