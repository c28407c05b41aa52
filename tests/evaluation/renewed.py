"""``python -m tests.evaluation.renewed FILE``: renewals of LightGBM with early reports, and without.

LightGBM is trained again every few days on what was known, under several label regimes, with and without an attack: a
kind of fraud that begins with the first evaluated day. Nothing behind the last evaluated day is read.
``docs/decisions/0043-early-reports.md`` has the table.
"""

import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.learning.regimes import LabelRegime
from tests.evaluation.attacks import Attack, attacked, share_found
from tests.evaluation.detection import MEASURES, TOP, Data, Variant, at, difference, figures, scored

FIRST: Final = "2018-06-24"
BEHIND: Final = "2018-07-08"
REGIMES: Final = {
    "after 7 days": LabelRegime(reported="frauds-only", delay_days=7.0),
    "log-normal, median 5 days, spread 1": LabelRegime(reported="frauds-only", delay_days=5.0, delay_spread=1.0),
    "30 % within 6 hours, else after 7 days": LabelRegime(reported="frauds-only", delay_days=7.0, early_share=0.3),
}


def measured(
    data: Data, regime: LabelRegime, every_days: int, start: datetime, end: datetime
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[float]]:
    """Return the measures of each day without early reports and with them, and the shares of the attack found."""
    found, shares = [], []
    for early in (False, True):
        variant = Variant("renewed", regime, renewed_days=(every_days,), early_reports=early)
        *_, source = scored(data, variant, start, end).values()
        reported = figures(data, source)
        found.append(np.array([reported[name] for name in MEASURES]))
        shares.append(share_found(reported) or np.nan)
    return found[0], found[1], shares


def lines(
    frame: pd.DataFrame, every_days: int, regimes: dict[str, LabelRegime], seeds: tuple[int, ...]
) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| reports | attack | frauds a day | with early reports | cards | with | attack found | with |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    start, end = at(FIRST), at(BEHIND)
    for attack in (None, *(Attack(seed=seed) for seed in seeds)):
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "transactions.parquet")
            (frame if attack is None else attacked(frame, attack, start, end)).to_parquet(file)
            data = Data(file)
            for name, regime in regimes.items():
                without, with_them, shares = measured(data, regime, every_days, start, end)
                cells = []
                for measure in (1, 0):
                    row = difference(TOP * with_them[measure], TOP * without[measure])
                    cells += [
                        f"{TOP * without[measure].mean():.2f}",
                        f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
                    ]
                reported = ["", ""] if attack is None else [f"{share:.3f}" for share in shares]
                yield f"| {name} | {'' if attack is None else attack.seed} | {' | '.join([*cells, *reported])} |"


@click.command("renewed")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--every-days", type=click.IntRange(min=1), default=2, show_default=True, help="Between two trainings.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(1,), show_default=True, help="Of an attack.")
@click.option("--only", type=click.Choice(list(REGIMES)), help="One label regime.")
def command(file: Path, every_days: int, seeds: tuple[int, ...], only: str | None) -> None:
    """Measure renewals on FILE (.parquet with the Handbook's columns) from 24 June to 7 July."""
    frame = pd.read_parquet(file)
    frame = frame[frame["TX_DATETIME"] < at(BEHIND).replace(tzinfo=None)]
    regimes = {only: REGIMES[only]} if only else dict(REGIMES)
    for line in lines(frame, every_days, regimes, seeds):
        click.echo(line)


if __name__ == "__main__":
    command()
