"""What ``build/bench.json`` says, as tables, for the terminal and for ``docs/benchmarks.md`` alike. Pure functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tests.benchmarks.bounds import Outcome, Verdict
from tests.benchmarks.delays import QUANTILES, STAGES
from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.tables import NOTHING, Table, columns, mebibytes, number, significant

Content = Mapping[str, Any]
MODES: Final = {"exactly_once": "exactly-once", "at_least_once": "at-least-once"}
SPLIT_AT: Final = 5_000
"""Transactions a second at which delays are shown by stage, where they were measured; all rates are in the file."""


def throughput(part: Content) -> Table:
    """Engines, fastest first."""
    engines = part["engines"]
    names = sorted(engines, key=lambda name: -engines[name]["rate_per_s"])

    def over(name: str, other: str) -> str:
        return significant(part["ratios"][name].get(other)) if name != other else "1"

    return Table(
        "Throughput: job (a) by every engine, job (b) by ours-b; medians",
        ("engine", "tx/s", "spread", "to bare", "ours-a to it", "CPU us", "broker us", "MiB"),
        columns(
            names,
            (number(engines[name]["rate_per_s"]) for name in names),
            (f"{engines[name]['spread']:.0%}" for name in names),
            (over(name, "bare") for name in names),
            (over("ours-a", name) if "ours-a" in engines else NOTHING for name in names),
            (number(engines[name]["engine_cpu_us"], 1) for name in names),
            (number(engines[name]["broker_cpu_us"], 1) for name in names),
            (mebibytes(engines[name]["peak_rss_bytes"]) for name in names),
        ),
        tuple(f"{name} was not measured: {why}" for name, why in {**part["missing"], **part["failed"]}.items()),
    )


def delivery(part: Content) -> Table:
    """What each engine read, and what it promises."""
    promised, engines = part["deliveries"], part["engines"]
    names = [name for name in promised if name in engines]
    return Table(
        "What was read, and what holds after a crash",
        ("engine", "records", "delivery and state"),
        columns(names, (number(engines[name]["records"]) for name in names), (promised[name] for name in names)),
        words=frozenset({0, 2}),
    )


def latency(part: Content) -> Table:
    """Percentiles by delivery and rate."""
    rows, notes = [], []
    for row in part["rows"]:
        mode, rate = MODES[row["mode"]], number(row["rate"])
        if not row["keeps_up"]:
            notes.append(
                f"{mode}, {rate}/s: does not keep up: {row['behind_at_end']:,} behind at the end, "
                f"{row['answered']:.1%} answered."
            )
            continue
        for what in ("decisions", "alerts"):
            found = row[f"{what}_ms"] or {}
            rows.append((mode, rate, what, *(number(found.get(name), 1) for name in QUANTILES)))
    return Table(
        "Latency, ms, from when a transaction was due to when its answer was read",
        ("delivery", "tx/s", "answer", *QUANTILES),
        tuple(rows),
        tuple(notes),
        frozenset({0, 2}),
    )


def split_rate(part: Content) -> int:
    """`SPLIT_AT`, or the highest rate where that was left out."""
    rates = [int(row["rate"]) for row in part["rows"]]
    return SPLIT_AT if SPLIT_AT in rates else max(rates)


def stages(part: Content) -> Table:
    """Delays by stage at one rate, both deliveries side by side."""
    rate = split_rate(part)
    found = {row["mode"]: row["stages_ms"] for row in part["rows"] if row["rate"] == rate}
    shown = {mode: name for mode, name in MODES.items() if mode in found}
    quantiles = ("p50", "p99", "p99.9")
    return Table(
        f"The same by stage, ms, at {rate:,} a second, {' (left) and '.join(shown.values())}",
        ("stage", *(quantile for _ in shown for quantile in quantiles)),
        tuple(
            (stage, *(number((found[mode][stage] or {}).get(quantile), 1) for mode in shown for quantile in quantiles))
            for stage in STAGES
        ),
    )


def latency_processors(part: Content) -> Table:
    """Who used the processor at each rate."""
    names = ("worker", "broker", "generator", "reader")
    return Table(
        "Processor time, us a transaction",
        ("delivery", "tx/s", *names),
        tuple(
            (MODES[row["mode"]], number(row["rate"]), *(number(row["cpu_us_a_transaction"][name]) for name in names))
            for row in part["rows"]
        ),
    )


def partitions(part: Content) -> Table:
    """By partitions, with one worker."""
    rows = sorted((row for row in part["rows"] if row["workers"] == 1), key=lambda row: row["partitions"])
    return _pipeline("Pipeline as it ships, one worker, by partitions", "partitions", rows, part)


def workers(part: Content) -> Table:
    """By workers, with as many partitions as job (a) has."""
    rows = sorted((row for row in part["rows"] if row["partitions"] == PARTITIONS), key=lambda row: row["workers"])
    return _pipeline(f"Pipeline as it ships, {PARTITIONS} partitions, by workers", "workers", rows, part)


def recovery(part: Content) -> Table:
    """Gaps after a kill."""
    ways = {"restart": "the same instance is started again", "takeover": "another worker takes over"}
    rows = part["rows"]
    return Table(
        f"Recovery after SIGKILL at {number(part['settings']['rate'])} tx/s: longest time without a decision, s",
        ("", "kills", "p50", "longest"),
        columns(
            (ways[row["how"]] for row in rows),
            (number(len(row["gaps_s"])) for row in rows),
            (number(row["p50_s"], 1) for row in rows),
            (number(row["longest_s"], 1) for row in rows),
        ),
    )


def _pipeline(title: str, by: str, rows: Sequence[Content], part: Content) -> Table:
    return Table(
        title,
        (by, "tx/s", "workers' CPU us", "broker us", "MiB, all workers"),
        columns(
            (number(row[by]) for row in rows),
            (number(row["rate_per_s"]) for row in rows),
            (number(row["engine_cpu_us"], 1) for row in rows),
            (number(row["broker_cpu_us"], 1) for row in rows),
            (mebibytes(row["peak_rss_bytes"]) for row in rows),
        ),
        tuple(f"{name} was not measured: {why}" for name, why in part["failed"].items()),
        frozenset(),
    )


def cards(part: Content) -> Table:
    """Windows by distinct cards."""
    rows = part["cards"]
    return Table(
        "Windows of both hops, one core, by distinct cards",
        ("cards", "merchants", "tx/s", "tx/s with hashing names", "bytes a card", "MiB"),
        columns(
            (number(row["cards"]) for row in rows),
            (number(row["merchants"]) for row in rows),
            (number(row["transactions_a_second"]) for row in rows),
            (number(row["with_names_a_second"]) for row in rows),
            (number(row["bytes_a_card"]) for row in rows),
            (mebibytes(row["state_bytes"]) for row in rows),
        ),
        words=frozenset(),
    )


def window_content(part: Content) -> Table:
    """Windows by what the longest one holds of a card."""
    rows = part["window_content"]
    return Table(
        "Windows by length: transactions of a card in the longest one",
        ("at the start", "at the end", "tx/s", "bytes a card"),
        columns(
            (number(row["transactions_a_card"]) for row in rows),
            (number(row["held_a_card"]) for row in rows),
            (number(row["transactions_a_second"]) for row in rows),
            (number(row["bytes_a_card"]) for row in rows),
        ),
        words=frozenset(),
    )


def batch(part: Content) -> Table:
    """Windows by rows of a batch."""
    rows = part["batch"]
    return Table(
        "Windows by transactions in a batch",
        ("batch", "tx/s"),
        columns((number(row["batch"]) for row in rows), (number(row["transactions_a_second"]) for row in rows)),
        words=frozenset(),
    )


def model(part: Content) -> Table:
    """Scoring by model size and rows at a time."""
    return _by_model("Scoring, us a row, by model and rows at a time", part["model"])


def explanation(part: Content) -> Table:
    """Explaining by model size and rows at a time."""
    return _by_model("Explaining (exact TreeSHAP), us a row, by model and rows at a time", part["explanation"])


def _by_model(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title,
        ("trees", "leaves", "rows", "here", "by LightGBM", "compiled"),
        columns(
            (number(row["trees"]) for row in rows),
            (number(row["leaves"]) for row in rows),
            (number(row["rows"]) for row in rows),
            (significant(row["us_a_row"]) for row in rows),
            (significant(row["lightgbm_us_a_row"]) for row in rows),
            ("yes" if row["compiled"] else "no" for row in rows),
        ),
        words=frozenset(),
    )


def state(part: Content) -> Table:
    """Restores by size of state."""
    rows = part["state"]
    return Table(
        "Restore of one card partition: from a snapshot, and by a replay of all of its log",
        ("transactions", "snapshot MiB", "load s", "replay s", "replay to load", "write s"),
        columns(
            (number(row["transactions"]) for row in rows),
            (mebibytes(row["snapshot_bytes"]) for row in rows),
            (significant(row["load_s"]) for row in rows),
            (significant(row["fold_s"]) for row in rows),
            (significant(row["fold_s"] / row["load_s"]) for row in rows),
            (significant(row["write_s"]) for row in rows),
        ),
        words=frozenset(),
    )


def in_process(part: Content) -> Table:
    """Replay on one core."""
    figures = {
        "transactions/s, file to decisions": number(part["transactions_a_second"]),
        "us a transaction, both hops": number(part["us_a_transaction"], 2),
        "us a transaction, feedback": number(part["feedback_us_a_transaction"], 2),
        "us a transaction, River's updates": number(part["learning_us_a_transaction"], 2),
        "transactions": number(part["transactions"]),
        "alerts": number(part["alerts"]),
        "bytes a decision": number(part["bytes_a_decision"]),
        **_feature_bytes(part),
    }
    return Table("Replay in process, one core, no Kafka", ("what", "figure"), tuple(figures.items()))


def _feature_bytes(part: Content) -> dict[str, str]:
    # Figures of releases that wrote no features are shown without.
    what = "feature_bytes_a_decision"
    return {"bytes a decision, on features": number(part[what])} if what in part else {}


def replay(part: Content) -> Table:
    """Replay over columns on one core."""
    figures = {
        "transactions/s of a core, file to decisions": number(part["transactions_a_cpu_second"]),
        "us a transaction": number(part["us_a_transaction"], 2),
        "us a transaction, feedback and River's learning": number(part["learning_us_a_transaction"], 2),
        "transactions": number(part["transactions"]),
        "labels": number(part["labels"]),
        "alerts": number(part["alerts"]),
    }
    return Table("Replay over columns, as backtests do, one core", ("what", "figure"), tuple(figures.items()))


def process_stages(part: Content) -> Table:
    """Where a replay's time goes, longest first."""
    split = sorted(part["stages_us"].items(), key=lambda item: -item[1])
    total = sum(us for _, us in split) or 1.0
    return Table(
        "Its processor time by stage",
        ("stage", "us a transaction", "share"),
        tuple((name, number(us, 2), f"{us / total:.0%}") for name, us in split),
    )


def machines(measured: Content) -> Table:
    """On what, and when, each part was measured."""
    rows = []
    for name in PARTS:
        if (taken := measured.get(name, {}).get("taken")) is None:
            continue
        machine = taken["machine"]
        memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
        reported = f"{machine['processor']}, {machine['cores']} cores, {memory}, {machine['system']}"
        quick = ", quick: figures mean nothing" if taken["quick"] else ""
        rows.append((name, f"{taken['at']}, {reported}, load {machine['load_average_1min']:.1f} at the start{quick}"))
    return Table("Measured", ("part", "when and where"), tuple(rows), words=frozenset({0, 1}))


def versions(measured: Content) -> Table:
    """Of interpreter and packages, in the project's environment and in the other engines'."""
    project = next((measured[name]["taken"]["versions"] for name in PARTS if name in measured), {})
    peers = measured.get("throughput", {}).get("peers", {})
    names = sorted({*project, *peers})
    return Table(
        "Versions",
        ("package", "project", "other engines"),
        columns(
            names,
            (project.get(name, NOTHING) for name in names),
            (peers.get(name, NOTHING) for name in names),
        ),
    )


def bounds(outcomes: Sequence[Outcome]) -> Table:
    """What the run is held to."""
    return Table(
        "Goals and limits",
        ("ratio, or figure", "value", "goal", "limit", ""),
        tuple(
            (
                outcome.bound.name,
                significant(outcome.value),
                f"{'>=' if outcome.bound.better == 'higher' else '<='} {significant(outcome.bound.goal)}",
                significant(outcome.bound.limit),
                outcome.verdict.value,
            )
            for outcome in outcomes
            if outcome.verdict is not Verdict.UNMEASURED
        ),
        words=frozenset({0, 4}),
    )


PARTS: Final[Mapping[str, Mapping[str, Callable[[Content], Table]]]] = {
    "kernel": {
        "cards": cards,
        "window-content": window_content,
        "batch": batch,
        "model": model,
        "explanation": explanation,
        "state": state,
    },
    "in_process": {"in-process": in_process, "in-process-stages": process_stages},
    "replay": {"replay": replay, "replay-stages": process_stages},
    "throughput": {"throughput": throughput, "delivery": delivery},
    "latency": {"latency": latency, "stages": stages, "latency-processors": latency_processors},
    "scale": {"partitions": partitions, "workers": workers},
    "recovery": {"recovery": recovery},
}
"""The parts of ``build/bench.json``, in the order in which they are measured, and the tables of each by name."""
