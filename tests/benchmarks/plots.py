"""The plots of ``docs/benchmarks.md``, each from one part of ``build/bench.json``. Pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.backtest.report.svg import QUIET, Bar, Series, bars, lines, nothing, stacked
from tests.benchmarks.delays import STAGES
from tests.benchmarks.report import MODES, split_rate

Content = Mapping[str, Any]
NOT_MEASURED: Final = "Not measured yet: make bench, then make bench-docs."


def throughput(part: Content) -> str:
    """Engines, fastest first."""
    found = sorted(part["engines"].items(), key=lambda item: -item[1]["rate_per_s"])
    rows = [
        Bar(name, row["rate_per_s"], f"{row['rate_per_s']:,.0f}", number=0 if name.startswith("ours") else QUIET)
        for name, row in found
    ]
    return bars("Transactions a second", rows)


def latency(part: Content) -> str:
    """Percentiles over rates, where the pipeline keeps up."""
    series = []
    for mode, name in MODES.items():
        for quantile in ("p50", "p99"):
            points = [
                (float(row["rate"]), float(row["decisions_ms"][quantile]))
                for row in part["rows"]
                if row["mode"] == mode and row["decisions_ms"] is not None
            ]
            if points:
                series.append(Series(f"{name} {quantile}", tuple(sorted(points))))
    if not series:
        return nothing("Latency of decisions", NOT_MEASURED)
    return lines("Latency of decisions, due to read", "transactions a second", "ms", series, log_x=True, log_y=True)


def stages(part: Content) -> str:
    """Medians of the stages at one rate."""
    rate = split_rate(part)
    rows = [
        (MODES[row["mode"]], [(stage, float((row["stages_ms"][stage] or {}).get("p50", 0.0))) for stage in STAGES])
        for row in part["rows"]
        if row["rate"] == rate
    ]
    title = f"Medians of the stages at {rate:,} a second (their sum is not the median of the whole)"
    return (
        stacked(title, "ms", rows)
        if any(value for _, split in rows for _, value in split)
        else nothing(title, NOT_MEASURED)
    )


def cards(part: Content) -> str:
    """Windows by distinct cards."""
    points = tuple((float(row["cards"]), float(row["transactions_a_second"])) for row in part["cards"])
    names = tuple((float(row["cards"]), float(row["with_names_a_second"])) for row in part["cards"])
    series = [Series("windows of both hops", points), Series("with hashing of names", names)]
    return lines("Windows alone, one core", "distinct cards", "transactions a second", series, log_x=True)


def windows(part: Content) -> str:
    """Windows by what they hold."""
    points = tuple(
        (float(row["transactions_a_card"]), float(row["transactions_a_second"])) for row in part["window_content"]
    )
    return lines(
        "Windows alone, by length",
        "transactions of a card in the longest window",
        "transactions a second",
        [Series("windows of both hops", points)],
        log_x=True,
    )


def model(part: Content) -> str:
    """Scoring in large batches."""
    most = max(row["rows"] for row in part["model"])
    rows = [row for row in part["model"] if row["rows"] == most]
    made = []
    for row in rows:
        name, compiled = f"{row['trees']} x {row['leaves']}", " (compiled)" if row["compiled"] else ""
        made.append(Bar(f"{name} here", row["us_a_row"], f"{row['us_a_row']:.3g} us{compiled}", number=0))
        made.append(Bar(f"{name} LightGBM", row["lightgbm_us_a_row"], f"{row['lightgbm_us_a_row']:.3g} us"))
    return bars(f"Scoring, us a row, {most:,} rows at a time, by trees x leaves", made)


def state(part: Content) -> str:
    """Restores."""
    series = [
        Series(name, tuple((float(row["transactions"]), float(row[key])) for row in part["state"]))
        for name, key in (("replay of the whole log", "fold_s"), ("load of a snapshot", "load_s"))
    ]
    return lines("Restore of one card partition", "transactions", "seconds", series, log_x=True, log_y=True)


def scale(part: Content) -> str:
    """Partitions and workers."""
    rows = sorted(part["rows"], key=lambda row: (row["workers"], row["partitions"]))
    if not rows:
        return nothing("Pipeline as it ships", NOT_MEASURED)
    made = [
        Bar(
            f"partitions: {row['partitions']}, workers: {row['workers']}",
            row["rate_per_s"],
            f"{row['rate_per_s']:,.0f} ({row['peak_rss_bytes'] / 2**20:,.0f} MiB)",
            number=0,
        )
        for row in rows
    ]
    return bars("Pipeline as it ships: transactions a second (memory of all workers)", made)


def in_process(part: Content) -> str:
    """Where the replay's time goes."""
    split = sorted(part["stages_us"].items(), key=lambda item: -item[1])
    return bars("Replay in process: us a transaction", [Bar(name, us, f"{us:.2f}", number=0) for name, us in split])


@dataclass(frozen=True)
class Plot:
    """A file of ``docs/benchmarks``."""

    part: str
    title: str
    draw: Callable[[Content], str]


PLOTS: Final = {
    "throughput": Plot("throughput", "Transactions a second", throughput),
    "latency": Plot("latency", "Latency of decisions", latency),
    "stages": Plot("latency", "Latency by stage", stages),
    "scale": Plot("scale", "Pipeline as it ships, by partitions and workers", scale),
    "cards": Plot("kernel", "Windows alone, by cards", cards),
    "windows": Plot("kernel", "Windows alone, by length", windows),
    "model": Plot("kernel", "Scoring, by model", model),
    "state": Plot("kernel", "Restore of one card partition", state),
    "in-process": Plot("in_process", "Replay in process, by stage", in_process),
}


def drawn(measured: Mapping[str, Content]) -> dict[str, str]:
    """SVG text of every plot by name; of a part that was not measured, a plot that says so."""
    return {
        name: plot.draw(measured[plot.part]) if plot.part in measured else nothing(plot.title, NOT_MEASURED)
        for name, plot in PLOTS.items()
    }
