"""``python -m tests.chaos``: the long form, or any other length."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from pipeline.broker import embedded_broker
from tests.chaos.harness import Chaos, Options
from tests.chaos.load import Load
from tests.chaos.records import save
from tests.chaos.report import as_json, as_text, write
from tests.chaos.run import EXPECTED
from tests.chaos.schedule import schedule, short_schedule

RESULT = Path("build/chaos.json")
DAYS_A_SECOND = 0.06
"""Event time that passes in a second: a worker's absence must stay within what labels wait for."""


@click.command()
@click.option("--seconds", default=900.0, show_default=True, help="How long there are load and faults.")
@click.option("--kills", default=32, show_default=True, help="SIGKILLs of workers; other faults in proportion.")
@click.option("--seed", default=1, show_default=True, help="Of load and faults.")
@click.option("--rows", type=int, help="Transactions, about.  [default: 60 a second]")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="A file with the Handbook's columns.")
@click.option("--short", is_flag=True, help="The few faults of the short form.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep logs and ledger of the run in this directory.")
def main(
    seconds: float, kills: int, seed: int, rows: int | None, data: Path | None, short: bool, keep: Path | None
) -> None:
    """Kill, stop, starve and corrupt a running pipeline, then prove from its logs that nothing shows."""
    rows = rows or round(60 * seconds)
    load = Load(seed, rows, max(3.0, seconds * DAYS_A_SECOND), 2, data)
    faults = short_schedule(seed, seconds) if short else schedule(seed, seconds, kills)
    options = Options(load, seconds, faults, maturity_days=min(5.0, load.days / 4))
    with TemporaryDirectory(prefix="chaos-") as scratch:
        directory = keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        with (
            embedded_broker(Path(scratch) / "kafka") as broker,
            Chaos(broker, directory, options, lambda text: print(text, flush=True)) as chaos,
        ):
            outcome = chaos.run()
        if keep is not None:
            save(keep / "ledger.jsonl", outcome.ledger)
            save(keep / "topics.jsonl", [one for entries in outcome.logs.topics.values() for one in entries])
    result = as_json(
        outcome,
        {
            "seed": seed,
            "seconds": seconds,
            "kills": kills,
            "rows": rows,
            "days": load.days,
            "data": data.name if data else None,
            "expected": EXPECTED._asdict(),
        },
    )
    write(RESULT, result)
    print(as_text(result))
    print(f"Written to {RESULT}.")
    sys.exit(bool(result["differences"] or result["failures"]))


if __name__ == "__main__":
    main()
