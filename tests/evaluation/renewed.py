"""``python -m tests.evaluation.renewed FILE``: renewals of LightGBM with early reports, and without.

LightGBM is trained again every few days on what was known, under several label regimes, with and without an attack: a
kind of fraud that begins with the first evaluated day. Nothing behind the last evaluated day is read.
``docs/decisions/0043-early-reports.md`` has the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.features.catalogue import US_PER_DAY
from pipeline.learning.regimes import LabelRegime
from pipeline.sources import load_transactions, resolve_mapping
from tests.evaluation.quality import TOP, Data, Variant, daily, difference, recall_of_kinds, scored, us_of

FIRST: Final = "2018-06-24"
BEHIND: Final = "2018-07-08"
ATTACK: Final = "attack"
REGIMES: Final = {
    "after 7 days": LabelRegime(reported="frauds-only", delay_days=7.0),
    "log-normal, median 5 days, spread 1": LabelRegime(reported="frauds-only", delay_days=5.0, delay_spread=1.0),
    "30 % within 6 hours, else after 7 days": LabelRegime(reported="frauds-only", delay_days=7.0, early_share=0.3),
}


@dataclass(frozen=True, slots=True)
class Attack:
    """A kind of fraud that nobody has seen: cards at merchants that are not theirs, at night."""

    a_day: int = 39
    first_hour: float = 0.0
    last_hour: float = 4.0
    least_minor: int = 8_000
    most_minor: int = 22_000
    seed: int = 1


def attacked(frame: pd.DataFrame, attack: Attack, from_us: int, to_us: int) -> pd.DataFrame:
    """Return a history with an attack from one time to another; its other rows stay as they are."""
    random = np.random.default_rng(attack.seed)
    days = np.arange(from_us, to_us, US_PER_DAY)
    n = attack.a_day * len(days)
    hours = random.uniform(attack.first_hour, attack.last_hour, n)
    times_us = np.repeat(days, attack.a_day) + (hours * (US_PER_DAY / 24)).astype(np.int64)
    rows = frame.iloc[random.integers(len(frame), size=n)].copy()
    rows["merchant_id"] = frame["merchant_id"].iloc[random.integers(len(frame), size=n)].to_numpy()
    rows["amount_minor"] = random.integers(attack.least_minor, attack.most_minor, n)
    rows["event_time"] = pd.to_datetime(times_us, unit="us", utc=True).astype(frame["event_time"].dtype)
    rows["transaction_id"] = [f"{ATTACK}-{number}" for number in range(n)]
    rows["fraud"], rows["fraud_type"] = True, ATTACK
    return pd.concat([frame, rows]).sort_values("event_time", kind="stable", ignore_index=True)


def measured(
    data: Data, regime: LabelRegime, every_days: int, from_us: int, to_us: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[float]]:
    """Return the measures of each day without early reports and with them, and the shares of the attack found."""
    found, shares = [], []
    for early in (False, True):
        variant = Variant("renewed", regime, renewed_days=every_days, early_reports=early)
        rows, score, _ = scored(data, variant, from_us, to_us)
        found.append(daily(data, rows, score))
        shares.append(recall_of_kinds(data, rows, score).get(ATTACK, np.nan))
    return found[0], found[1], shares


def lines(
    frame: pd.DataFrame, every_days: int, regimes: dict[str, LabelRegime], seeds: tuple[int, ...]
) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| reports | attack | frauds a day | with early reports | cards | with | attack found | with |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    from_us, to_us = us_of(FIRST), us_of(BEHIND)
    for attack in (None, *(Attack(seed=seed) for seed in seeds)):
        data = Data(frame if attack is None else attacked(frame, attack, from_us, to_us))
        for name, regime in regimes.items():
            without, with_them, shares = measured(data, regime, every_days, from_us, to_us)
            cells = []
            for measure in (1, 0):
                of = difference(TOP * with_them[measure], TOP * without[measure])
                cells += [
                    f"{TOP * without[measure].mean():.2f}",
                    f"{of['mean']:+.2f} [{of['low']:+.2f}, {of['high']:+.2f}]",
                ]
            told = ["", ""] if attack is None else [f"{share:.3f}" for share in shares]
            yield f"| {name} | {'' if attack is None else attack.seed} | {' | '.join([*cells, *told])} |"


@click.command("renewed")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--every-days", type=click.IntRange(min=1), default=2, show_default=True, help="Between two trainings.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(1,), show_default=True, help="Of an attack.")
@click.option("--only", type=click.Choice(list(REGIMES)), help="One label regime.")
def command(file: Path, every_days: int, seeds: tuple[int, ...], only: str | None) -> None:
    """Measure renewals on FILE (.parquet or .csv with the Handbook's columns) from 24 June to 7 July."""
    end = datetime.fromisoformat(BEHIND).replace(tzinfo=UTC)
    frame = load_transactions(file, resolve_mapping(file, preset="handbook"), end=end)
    regimes = {only: REGIMES[only]} if only else dict(REGIMES)
    for line in lines(frame, every_days, regimes, seeds):
        click.echo(line)


if __name__ == "__main__":
    command()
