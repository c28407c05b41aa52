"""``python -m tests.chaos``: the long form, or any other length."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import click
from confluent_kafka import KafkaException

from pipeline.broker import embedded_broker
from tests.chaos.brokers import Brokers
from tests.chaos.harness import Chaos, Options, Outcome
from tests.chaos.load import Load
from tests.chaos.records import read_logs, save
from tests.chaos.report import as_json, as_text, write
from tests.chaos.schedule import cluster_schedule, schedule, short_schedule
from tests.helpers.cluster import REPLICATED, kafka_nodes

RESULT = Path("build/chaos.json")
FAILED = Path("build/chaos-failed")
ROWS_A_SECOND = {1: 60, 3: 20}
"""By number of brokers: one machine runs them all."""
DAYS_A_SECOND = {1: 0.06, 3: 0.03}
"""Event time that passes in a second: what is undecided for a while must stay within what labels wait for."""
HORIZON_DAYS = 10.0
"""Of labels and of repeats, or a quarter of a shorter run."""


@click.command()
@click.option("--seconds", default=900.0, show_default=True, help="How long there are load and faults.")
@click.option("--kills", default=32, show_default=True, help="SIGKILLs of workers; other faults in proportion.")
@click.option("--seed", default=1, show_default=True, help="Of load and faults.")
@click.option(
    "--brokers",
    type=click.Choice(["1", "3"]),
    default="1",
    show_default=True,
    help="Three replicate, and have faults of their own.",
)
@click.option("--rows", type=int, help="Transactions, about.  [default: 60 a second, on three brokers 20]")
@click.option(
    "--days", type=float, help="Event time that passes.  [default: 0.06 a second, on three brokers 0.03, 3 at least]"
)
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="A file with the Handbook's columns.")
@click.option("--short", is_flag=True, help="The few faults of the short form.")
@click.option(
    "--delivery",
    type=click.Choice(["exactly_once", "at_least_once"]),
    default="exactly_once",
    show_default=True,
    help="Of the workers; at least once, the proof allows repeats.",
)
@click.option(
    "--protocol",
    type=click.Choice(["auto", "consumer", "classic"]),
    default="auto",
    show_default=True,
    help="How the workers join their groups.",
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep everything of the run in this directory.")
def main(
    seconds: float,
    kills: int,
    seed: int,
    brokers: Literal["1", "3"],
    rows: int | None,
    days: float | None,
    data: Path | None,
    short: bool,
    delivery: Literal["exactly_once", "at_least_once"],
    protocol: Literal["auto", "consumer", "classic"],
    keep: Path | None,
) -> None:
    """Kill, stop, starve and corrupt a running pipeline, then prove from its logs that nothing shows."""
    count = int(brokers)
    rows, days = rows or round(ROWS_A_SECOND[count] * seconds), days or max(3.0, seconds * DAYS_A_SECOND[count])
    load = Load(seed, rows, days, 2, data, horizon_days=min(HORIZON_DAYS, days / 4))
    long_schedule = schedule if count == 1 else cluster_schedule
    faults = short_schedule(seed, seconds, cluster=count > 1) if short else long_schedule(seed, seconds, kills)
    options = Options(
        load,
        seconds,
        faults,
        maturity_days=min(5.0, days / 4),
        delivery=delivery,
        protocol=protocol,
        thorough=not short,
    )
    reported = {
        "seed": seed,
        "seconds": seconds,
        "kills": kills,
        "brokers": count,
        "rows": rows,
        "days": days,
        "data": data.name if data else None,
        "delivery": delivery,
        "protocol": protocol,
    }
    with _kept(keep) as (directory, good):
        result = as_json(_run(directory, options, reported, everything=keep is not None), reported)
        write(RESULT, result)
        print(as_text(result))
        print(f"Written to {RESULT}.")
        if not (result["differences"] or result["failures"]):
            good.append(True)
    sys.exit(bool(result["differences"] or result["failures"]))


@contextmanager
def _kept(keep: Path | None) -> Iterator[tuple[Path, list[bool]]]:
    """A directory for a run, which is ``keep`` or goes afterwards; one that failed is kept as `FAILED`.

    The run was good when something was put into the list, which comes with the directory.
    """
    good: list[bool] = []
    with TemporaryDirectory(prefix="chaos-") as scratch:
        directory = keep or Path(scratch) / "run"
        directory.mkdir(parents=True, exist_ok=True)
        try:
            yield directory, good
        finally:
            if not good and keep is None:
                shutil.rmtree(FAILED, ignore_errors=True)
                FAILED.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(directory, FAILED)
            if not good:
                print(f"Kept for a look: logs, ledger, topics and the broker's data, in {keep or FAILED}.")


def _run(directory: Path, options: Options, row: dict[str, Any], *, everything: bool) -> Outcome:
    """Run; ledger and topics are saved where the run fails or ``everything`` is to be kept.

    A run that cannot go on writes what is known of it to `RESULT`, and raises.
    """
    with (
        _brokers(directory / "kafka", row["brokers"]) as brokers,
        Chaos(brokers, directory, options, lambda text: print(text, flush=True)) as chaos,
    ):
        try:
            outcome = chaos.run()
        except Exception as error:
            endings = [chao._asdict() for chao in chaos.fleet.endings]
            failed = {"options": row, "failures": [f"{type(error).__name__}: {error}"]}
            write(RESULT, {**failed, "workers_that_ended_by_themselves": endings})
            _save(directory, chaos, brokers.bootstrap_servers)
            raise
    result = as_json(outcome, {})
    if everything or result["differences"] or result["failures"]:
        _save(directory, chaos, None)
    return outcome


@contextmanager
def _brokers(directory: Path, count: int) -> Iterator[Brokers]:
    if count == 1:
        with embedded_broker(directory) as broker:
            yield Brokers(broker)
    else:
        with kafka_nodes(directory, count, REPLICATED) as nodes:
            yield Brokers(nodes)


def _save(directory: Path, chaos: Chaos, bootstrap: str | None) -> None:
    """Write ledger and topics, which are read first where ``bootstrap`` is given and they were not yet."""
    save(directory / "ledger.jsonl", chaos.sent)
    logs = chaos.logs
    if logs is None and bootstrap is not None:
        try:
            logs = read_logs(bootstrap, chaos.settings.topic_prefix)
        except (KafkaException, RuntimeError) as error:
            print(f"The topics could not be read ({error}): they are in the broker's data.")
    if logs is not None:
        save(directory / "topics.jsonl", [entry for entries in logs.topics.values() for entry in entries])


if __name__ == "__main__":
    main()
