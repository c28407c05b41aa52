"""``python -m tests.evaluation.quality FILE``: detection of the pipeline's models, with intervals.

Each part is measured in units, in as many processes as are asked for. ``docs/quality.md`` says what the figures mean.
Choose on the days before 8 July; only ``--final`` reads the weeks that nothing was chosen on.
"""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import click

from pipeline.history.canonical_columns import UnusableSource
from pipeline.history.files import file_tables
from tests.evaluation import attacks, budget, compared, over_time, selection, variants
from tests.evaluation.parts import Found, Part, Table, Unit
from tests.evaluation.worlds import renewals
from tests.evaluation.worlds.part import PART as WORLDS

PARTS: Final[dict[str, Part]] = {
    "variants": variants.PART,
    "published": compared.PART,
    "attacks": attacks.PART,
    "features": selection.PART,
    "worlds": WORLDS,
    "budget": budget.PART,
    "river": renewals.PART,
    "months": over_time.MONTHS_PART,
    "cold-start": over_time.COLD_PART,
}


def timed(unit: Unit) -> tuple[Found, float]:
    """Measure a unit; returns what it found, and the seconds of processor time that it took."""
    began_s = time.process_time()
    return unit.measure(*unit.arguments), time.process_time() - began_s


def measured(units: Sequence[Unit], jobs: int) -> Iterator[tuple[int, Found, float]]:
    """Measure units; yields the number of each, as it is done, what it found and its seconds."""
    if jobs == 1:
        for number, unit in enumerate(units):
            yield number, *timed(unit)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        running = {pool.submit(timed, unit): number for number, unit in enumerate(units)}
        for done in as_completed(running):
            yield running[done], *done.result()


def commit() -> str:
    """Return the commit that is measured, with ``+`` where files have changed since."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def keep(output: Path, reading: dict[str, Any]) -> None:
    """Add a reading to those in a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"readings": []}
    kept["readings"].append(reading)
    output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def show(table: Table) -> None:
    """Print a table."""
    click.echo(f"\n{table.title}\n")
    for line in table.lines:
        click.echo(line)


@click.command("quality")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--final", is_flag=True, help="Read the weeks that nothing was chosen on; the reading is recorded.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("build/quality.json"), show_default=True
)
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="May be repeated.  [default: all of them]"
)
@click.option("--only", multiple=True, metavar="NAME", help="A variant, attack, world, month, ...; may be repeated.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes; each takes up to 4 GB."
)
def command(file: Path, final: bool, output: Path, parts: tuple[str, ...], only: tuple[str, ...], jobs: int) -> None:
    """Measure detection on FILE (.parquet or .csv with the Handbook's columns)."""
    chosen = {name: part for name, part in PARTS.items() if not parts or name in parts}
    known = [item for part in chosen.values() for item in part.items]
    if unknown := set(only) - set(known):
        raise click.UsageError(f"there is no {', '.join(sorted(unknown))}; these are there: {', '.join(known)}")
    try:
        if not len(next(file_tables(file, chunk_rows=1), ())):
            raise UnusableSource(f"{file} has no rows: give the Handbook's transactions")
    except UnusableSource as error:
        raise click.ClickException(str(error)) from error
    for name, part in chosen.items():
        units = part.units(file, final, only or part.items)
        if not units:
            continue
        began_s, found, seconds = time.monotonic(), {}, {}
        for number, source, took_s in measured(units, jobs):
            click.echo(f"{name}: {units[number].name}, {took_s:.0f} s", err=True)
            found[number], seconds[units[number].name] = source, round(took_s, 1)
        took_s = time.monotonic() - began_s
        of_units = {unit.name: found[number] for number, unit in enumerate(units)}
        tables = list(part.tables(of_units))
        keep(
            output,
            {
                "commit": commit(), "part": name, "final": final, "seconds": round(took_s, 1),
                "processor_seconds": seconds, "units": of_units,
                "tables": {table.title: table.lines for table in tables},
            },
        )  # fmt: skip
        click.echo(f"\n{name}: {took_s:.0f} s, {sum(seconds.values()):.0f} s of processor time")
        for table in tables:
            show(table)


if __name__ == "__main__":
    command()
