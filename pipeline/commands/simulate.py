"""``fraud-pipeline simulate``: write simulated transactions to a file."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.simulation.simulator import DEFAULT_START, Scenario, make_profiles, stream_days

_PUBLISHED: Final = Scenario()
_SCHEMA: Final = pa.schema(
    [
        ("transaction_id", pa.string()),
        ("event_time", pa.timestamp("us", "UTC")),
        ("card_id", pa.string()),
        ("merchant_id", pa.string()),
        ("amount", pa.float64()),
        ("amount_minor", pa.int64()),
        ("currency", pa.string()),
        ("fraud", pa.bool_()),
        ("fraud_type", pa.string()),
    ]
)


@click.command("simulate")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--days", default=183, show_default=True, type=click.IntRange(min=1), help="Days to simulate.")
@click.option("--cards", default=5_000, show_default=True, type=click.IntRange(min=1), help="Cards.")
@click.option("--merchants", default=10_000, show_default=True, type=click.IntRange(min=1), help="Merchants.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of all randomness.")
@click.option(
    "--start",
    default=f"{DEFAULT_START:%Y-%m-%d}",
    show_default=True,
    type=click.DateTime(["%Y-%m-%d"]),
    help="First day (UTC).",
)
@click.option(
    "--merchant-fraud-share",
    default=_PUBLISHED.merchant_share,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True, max=1),
    help="Share of fraud in what a compromised merchant takes.",
)
@click.option(
    "--card-fraud-share",
    default=_PUBLISHED.card_share,
    show_default="a third",
    type=click.FloatRange(min=0, min_open=True, max=1),
    help="Share of fraud in what a compromised card pays.",
)
@click.option(
    "--card-factor",
    default=_PUBLISHED.card_factor,
    show_default=True,
    type=click.IntRange(min=2),
    help="By which the amounts of a compromised card's frauds are multiplied.",
)
def command(
    file: Path,
    days: int,
    cards: int,
    merchants: int,
    seed: int,
    start: datetime,
    merchant_fraud_share: float,
    card_fraud_share: float,
    card_factor: int,
) -> None:
    """Write simulated transactions, with their truth, to FILE (.parquet or .csv), in order of time.

    The simulator is that of the Fraud Detection Handbook; the same options give the same file. It compromises a fixed
    number of cards and merchants a day, so that a smaller population has a larger share of fraud.
    """
    kind = file.suffix.lower()
    if kind not in {".parquet", ".csv"}:
        raise click.BadParameter(f"{file}: write to a .parquet or a .csv file", param_hint="FILE")
    if not file.parent.is_dir():
        raise click.BadParameter(f"there is no directory {file.parent}", param_hint="FILE")
    try:
        scenario = Scenario(merchant_share=merchant_fraud_share, card_share=card_fraud_share, card_factor=card_factor)
        profiles = make_profiles(np.random.default_rng(seed), cards, merchants, scenario)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    frames = stream_days(profiles, seed, start=start.replace(tzinfo=UTC).date(), n_days=days)
    transactions = frauds = 0
    # Written beside the file and moved: an interrupted run leaves no half file under the name.
    partial = file.with_name(f".{file.name}.partial")
    try:
        with _writer(partial, kind) as write:
            for frame in frames:
                write(frame)
                transactions += len(frame)
                frauds += int(frame["fraud"].sum())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    click.echo(json.dumps({"file": str(file), "transactions": transactions, "frauds": frauds, "days": days}))


@contextmanager
def _writer(path: Path, kind: str) -> Iterator[Callable[[pd.DataFrame], object]]:
    """Yield what appends a frame to a file; a row group each in Parquet."""
    if kind == ".parquet":
        with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as parquet:
            yield lambda frame: parquet.write_table(pa.Table.from_pandas(frame, _SCHEMA, preserve_index=False))
    else:
        with path.open("w", encoding="utf-8", newline="") as csv:
            csv.write(",".join(_SCHEMA.names) + "\n")
            yield lambda frame: frame.to_csv(csv, header=False, index=False, float_format="%.2f")
