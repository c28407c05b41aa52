"""``python -m tests.chaos.declarations``: random declarations of features on a real broker, changed and under kills."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from tests.helpers.declarations import as_toml, changed_declaration, random_declaration

VARIABLE = "FRAUD_PIPELINE_FEATURES_FILE"
ROOT = Path(__file__).parents[2]
TABLES, NEW_TABLES = 12, 8
"""Feature tables of the first declaration, and new ones of each that follows."""
FIRST = 100
"""Names of each declaration's new features count from a multiple of it."""
DAYS = 150.0
"""Event time of a history."""
HORIZON_DAYS = 40.0
"""Horizon of labels and of repeats."""
RESULT = "result.json"
SUMMED = (
    "transactions",
    "values",
    "sigkills",
    "from_snapshot",
    "from_log",
    "changes",
    "crossing",
    "starts_again",
    "compared",
)


@click.group(invoke_without_command=True)
@click.option("--declarations", default=20, show_default=True, help="How many, one after the other.")
@click.option("--seed", default=1, show_default=True, help="Of the first; the others count on.")
@click.option("--rows", default=2_000, show_default=True, help="Transactions of each, about.")
@click.option("--seconds", default=48.0, show_default=True, help="Length of the load of each.")
@click.option("--kills", default=1, show_default=True, help="SIGKILLs beside those of changes and snapshots.")
@click.option("--together", default=1, show_default=True, help="How many at the same time.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep everything in this directory.")
@click.pass_context
def main(
    context: click.Context, declarations: int, seed: int, rows: int, seconds: float, kills: int, together: int,
    keep: Path | None,
) -> None:  # fmt: skip
    """Send random histories to workers under random declarations, change these, and kill; then prove every value."""
    if context.invoked_subcommand is not None:
        return
    total, bad = Counter[str](), 0
    with TemporaryDirectory(prefix="chaos-") as scratch, ThreadPoolExecutor(together) as pool:

        def run(number: int) -> dict[str, Any]:
            return of_seed(number, rows, seconds, kills, (keep or Path(scratch)) / str(number))

        for number, result in enumerate(pool.map(run, range(seed, seed + declarations)), seed):
            total.update({name: result[name] for name in (*SUMMED, "differences")})
            bad += bool(result["differences"] or result["failures"])
            figures = ", ".join(f"{result[name]:,} {name.replace('_', ' ')}" for name in SUMMED)
            print(f"{number}: {result['differences']} differences; {figures}", flush=True)
            for text in (*result["failures"], *result["problems"]):
                print(f"    {text}", flush=True)
    print(json.dumps({"runs": declarations, "runs that failed": bad, **total}, indent=1))
    sys.exit(bool(bad))


def of_seed(seed: int, rows: int, seconds: float, kills: int, directory: Path) -> dict[str, Any]:
    """Run a seed's declarations in a process of its own; return its figures."""
    directory.mkdir(parents=True)
    for number, declaration in enumerate(declarations_of(seed)):
        (directory / f"{number}.toml").write_text(as_toml(declaration), encoding="utf-8")
    arguments = [str(argument) for argument in (seed, rows, seconds, kills, directory)]
    try:
        _run("one", *arguments, file=directory / "0.toml", log=directory / "run.log")
    except RuntimeError as error:
        return {**dict.fromkeys((*SUMMED, "differences"), 0), "failures": [str(error)], "problems": []}
    found: dict[str, Any] = json.loads((directory / RESULT).read_text())
    return found


def declarations_of(seed: int) -> list[dict[str, Any]]:
    """Return the declarations that become active one after the other: back to the first one in every other run."""
    first = random_declaration(seed, TABLES)
    second = changed_declaration(first, seed + 1_000, NEW_TABLES, FIRST)
    return [first, second, first if seed % 2 else changed_declaration(second, seed + 2_000, NEW_TABLES, 2 * FIRST)]


def _run(*arguments: str, file: Path, log: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command of this module under a declaration; return what it prints."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, *arguments]
    with log.open("ab") as sink:
        done = subprocess.run(
            command, env={**os.environ, **(environment or {}), VARIABLE: str(file)}, cwd=ROOT, check=False,
            stdout=subprocess.PIPE, stderr=sink, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        sink.write(done.stdout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{log.read_text()[-4_000:]}")
    return done.stdout.decode()


@main.command()
@click.argument("seed", type=int)
@click.argument("rows", type=int)
@click.argument("seconds", type=float)
@click.argument("kills", type=int)
@click.argument("directory", type=click.Path(path_type=Path))
def one(seed: int, rows: int, seconds: float, kills: int, directory: Path) -> None:
    """Run the declarations of a seed, whose files are there; this process has the first."""
    from tests.chaos.declared import run_declared

    declarations = declarations_of(seed)

    def recorded(file: Path, environment: dict[str, str]) -> dict[str, Any]:
        printed = _run("backtest", file=file, log=directory / "backtest.log", environment=environment)
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found

    result = run_declared(seed, rows, seconds, kills, directory, declarations, recorded)
    (directory / RESULT).write_text(json.dumps(result, indent=1))


@main.command()
def backtest() -> None:
    """Decide what live was decided once more, in recorded order, and print what differs."""
    from pipeline.settings import Settings
    from tests.chaos.declared import recorded_backtest

    print(json.dumps(recorded_backtest(Settings())))


if __name__ == "__main__":
    main()
