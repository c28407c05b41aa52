"""What ``build/bench.json`` says, as tables, for the terminal and for ``docs/benchmarks.md`` alike. Pure functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from tests.benchmarks.bounds import Outcome, Verdict
from tests.benchmarks.delays import QUANTILES, STAGES
from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.tables import NOTHING, Table, mebibytes, number, significant

Content = Mapping[str, Any]
MODES: Final = {"exactly_once": "exactly-once", "at_least_once": "at-least-once"}
FLOOR: Final = "floor"
"""The engine of part ``chain`` that the others are held to."""
SPLIT_AT: Final = 5_000
"""Transactions a second at which delays are shown by stage, where they were measured; all rates are in the file."""


Row = Mapping[str, Any]


def _of(name: str, shown: Callable[..., str] = number, *options: int) -> Callable[[Row], str]:
    return lambda row: shown(row[name], *options)


def _table(title: str, rows: Iterable[Row], cells: Mapping[str, Callable[[Row], str]], **more: Any) -> Table:
    """A table of rows, with a column for each of ``cells``."""
    return Table(title, tuple(cells), tuple(tuple(cell(row) for cell in cells.values()) for row in rows), **more)


def _not_measured(*reasons: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name} was not measured: {why}" for found in reasons for name, why in found.items())


def throughput(part: Content) -> Table:
    """Engines, fastest first."""
    engines = part["engines"]
    names = sorted(engines, key=lambda name: -engines[name]["rate_per_s"])

    def over(name: str, other: str) -> str:
        return significant(part["ratios"].get(name, {}).get(other)) if name != other else "1"

    return _table(
        "Throughput: job (a) by every engine, job (b) by ours-b; medians",
        [{"engine": name, **engines[name]} for name in names],
        {
            "engine": lambda row: row["engine"],
            "tx/s": _of("rate_per_s"),
            "spread": lambda row: f"{row['spread']:.0%}",
            "to bare": lambda row: over(row["engine"], "bare"),
            "ours-a to it": lambda row: over("ours-a", row["engine"]),
            "CPU us": _of("engine_cpu_us", number, 1),
            "broker us": _of("broker_cpu_us", number, 1),
            "MiB": _of("peak_rss_bytes", mebibytes),
        },
        notes=_not_measured(part["missing"], part["failed"]),
    )


def delivery(part: Content) -> Table:
    """What each engine read, and what it promises."""
    return _table(
        "What was read, and what holds after a crash",
        [
            {"engine": name, "promised": promised, **part["engines"][name]}
            for name, promised in part["deliveries"].items()
            if name in part["engines"]
        ],
        {
            "engine": lambda row: row["engine"],
            "records": _of("records"),
            "delivery and state": lambda row: row["promised"],
        },
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


def _by_rate(title: str, part: Content, shown: Callable[[Row, Row, str], str]) -> Table:
    """Engines, with p50 and p99 at each rate; ``shown`` gets a row, the floor's at its rate, and the quantile."""
    found = {(row["engine"], row["rate"]): row for row in part["rows"]}
    engines, rates = (list(dict.fromkeys(row[name] for row in part["rows"])) for name in ("engine", "rate"))
    return Table(
        title,
        ("engine", *(head for rate in rates for head in (f"{number(rate)}/s", "p99"))),
        tuple(
            (
                engine,
                *(
                    shown(found[engine, rate], found.get((FLOOR, rate), {}), f"{quantile}_ms")
                    for rate in rates
                    for quantile in ("p50", "p99")
                ),
            )
            for engine in engines
        ),
    )


def chain(part: Content) -> Table:
    """Ratios to the floor."""

    def ratio(row: Row, floor: Row, quantile: str) -> str:
        measured, least = row[quantile], floor.get(quantile)
        return NOTHING if measured is None or least is None else number(measured / least, 2)

    table = _by_rate("Exactly-once, due to read, as a ratio to the floor: p50 at each rate, and p99", part, ratio)
    return replace(table, notes=_not_measured(part["failed"]))


def chain_ms(part: Content) -> Table:
    """The same in milliseconds."""
    return _by_rate("The same in ms", part, lambda row, _, quantile: number(row[quantile], 1))


def partitions(part: Content) -> Table:
    """By partitions, with one worker."""
    rows = sorted((row for row in part["rows"] if row["workers"] == 1), key=lambda row: row["partitions"])
    return _pipeline("Pipeline as it ships, one worker, by partitions", "partitions", rows, part)


def workers(part: Content) -> Table:
    """By workers, with as many partitions as job (a) has."""
    rows = sorted((row for row in part["rows"] if row["partitions"] == PARTITIONS), key=lambda row: row["workers"])
    return _pipeline(f"Pipeline as it ships, {PARTITIONS} partitions, by workers", "workers", rows, part)


def _pipeline(title: str, by: str, rows: Sequence[Content], part: Content) -> Table:
    cells = {
        by: _of(by),
        "tx/s": _of("rate_per_s"),
        "workers' CPU us": _of("engine_cpu_us", number, 1),
        "broker us": _of("broker_cpu_us", number, 1),
        "MiB, all workers": _of("peak_rss_bytes", mebibytes),
    }
    return _table(title, rows, cells, notes=_not_measured(part["failed"]), words=frozenset())


def recovery(part: Content) -> Table:
    """Gaps after a kill."""
    ways = {"restart": "the same instance is started again", "takeover": "another worker takes over"}
    return _table(
        f"Recovery after SIGKILL at {number(part['settings']['rate'])} tx/s: longest time without a decision, s",
        part["rows"],
        {
            "": lambda row: ways[row["how"]],
            "kills": lambda row: number(len(row["gaps_s"])),
            "p50": _of("p50_s", number, 1),
            "longest": _of("longest_s", number, 1),
        },
    )


def _kernel(key: str, title: str, cells: Mapping[str, Callable[[Row], str]]) -> Callable[[Content], Table]:
    return lambda part: _table(title, part[key], cells, words=frozenset())


_OF_MODELS: Final = {
    "trees": _of("trees"),
    "leaves": _of("leaves"),
    "rows": _of("rows"),
    "here": _of("us_a_row", significant),
    "by LightGBM": _of("lightgbm_us_a_row", significant),
    "compiled": lambda row: "yes" if row["compiled"] else "no",
}
_KERNEL: Final = {
    "cards": _kernel(
        "cards",
        "Windows of both hops, one core, by distinct cards",
        {
            "cards": _of("cards"),
            "merchants": _of("merchants"),
            "tx/s": _of("transactions_a_second"),
            "tx/s with hashing names": _of("with_names_a_second"),
            "bytes a card": _of("bytes_a_card"),
            "MiB": _of("state_bytes", mebibytes),
        },
    ),
    "window-content": _kernel(
        "window_content",
        "Windows by length: transactions of a card in the longest one",
        {
            "at the start": _of("transactions_a_card"),
            "at the end": _of("held_a_card"),
            "tx/s": _of("transactions_a_second"),
            "bytes a card": _of("bytes_a_card"),
        },
    ),
    "batch": _kernel(
        "batch", "Windows by transactions in a batch", {"batch": _of("batch"), "tx/s": _of("transactions_a_second")}
    ),
    "model": _kernel("model", "Scoring, us a row, by model and rows at a time", _OF_MODELS),
    "explanation": _kernel(
        "explanation", "Explaining (exact TreeSHAP), us a row, by model and rows at a time", _OF_MODELS
    ),
    "state": _kernel(
        "state",
        "Restore of one card partition: from a snapshot, and by a replay of all of its log",
        {
            "transactions": _of("transactions"),
            "snapshot MiB": _of("snapshot_bytes", mebibytes),
            "load s": _of("load_s", significant),
            "replay s": _of("fold_s", significant),
            "replay to load": lambda row: significant(row["fold_s"] / row["load_s"]),
            "write s": _of("write_s", significant),
        },
    ),
}


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
        "bytes a decision, on features": number(part["feature_bytes_a_decision"]),
    }
    return Table("Replay in process, one core, no Kafka", ("what", "figure"), tuple(figures.items()))


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
    rows = tuple((name, project.get(name, NOTHING), peers.get(name, NOTHING)) for name in names)
    return Table("Versions", ("package", "project", "other engines"), rows)


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
    "kernel": _KERNEL,
    "in_process": {"in-process": in_process, "in-process-stages": process_stages},
    "replay": {"replay": replay, "replay-stages": process_stages},
    "throughput": {"throughput": throughput, "delivery": delivery},
    "latency": {"latency": latency, "stages": stages, "latency-processors": latency_processors},
    "chain": {"chain": chain, "chain-ms": chain_ms},
    "scale": {"partitions": partitions, "workers": workers},
    "recovery": {"recovery": recovery},
}
"""The parts of ``build/bench.json``, in the order in which they are measured, and the tables of each by name."""
