"""A made-up content of ``build/bench.json``, whole and with wide figures, for tests of what is made from it."""

from typing import Any

from tests.benchmarks.delays import STAGES
from tests.benchmarks.engines import ENGINES
from tests.benchmarks.measured import ratios

QUANTILES_MS = {"p50": 12.3, "p90": 23.4, "p99": 1_045.6, "p99.9": 2_190.1, "max": 12_345.6}


def taken(**changes: Any) -> dict[str, Any]:
    """Of a part."""
    machine = {
        "processor": "Example Processor 9000 @ 2.40GHz",
        "cores": 2,
        "memory_bytes": 8 * 2**30,
        "system": "Linux-6.1.0-x86_64-with-glibc2.36",
        "load_average_1min": 0.1,
    }
    found = {"at": "2026-01-02T03:04:05+00:00", "machine": machine, "versions": {"python": "3.11.9", "numpy": "2.4.1"}}
    return {**found, "quick": False, **changes}


def example() -> dict[str, Any]:
    """Every part; a call gives a new one."""
    engines = {
        engine.name: {
            "runs": 3,
            "records": engine.records,
            "rate_per_s": 123_456.7 / number,
            "spread": 0.12,
            "engine_cpu_us": 1_234.56,
            "broker_cpu_us": 123.45,
            "peak_rss_bytes": 12 * 2**30,
        }
        for number, engine in enumerate(ENGINES, 1)
    }
    row = {
        "keeps_up": True, "answered": 1.0, "behind_at_end": 3, "decisions_ms": QUANTILES_MS, "alerts_ms": None,
        "stages_ms": dict.fromkeys(STAGES, QUANTILES_MS),
        "cpu_us_a_transaction": {"worker": 1_234.5, "broker": 987.6, "generator": 123.4, "reader": 99.9},
    }  # fmt: skip
    behind = {**row, "keeps_up": False, "behind_at_end": 54_321, "answered": 0.87654, "decisions_ms": None}
    windows = {
        "population": 5_000_000, "cards": 4_323_456, "merchants": 500_000, "transactions_a_card": 3_000,
        "held_a_card": 4_000.0, "batch": 10_000, "transactions_a_second": 2_345_678, "with_names_a_second": 1_234_567,
        "bytes_a_card": 123_456, "state_bytes": 3 * 2**30,
    }  # fmt: skip
    return {
        "kernel": {
            "taken": taken(),
            "cards": [{**windows, "population": count, "cards": count} for count in (10_000, 1_000_000)],
            "window_content": [{**windows, "transactions_a_card": count} for count in (30, 3_000)],
            "batch": [windows],
            "model": [
                {
                    "trees": 200,
                    "leaves": 63,
                    "rows": rows,
                    "compiled": True,
                    "us_a_row": 123.456,
                    "lightgbm_us_a_row": 345.6,
                }
                for rows in (1, 2_000)
            ],
            "explanation": [
                {
                    "trees": 200,
                    "leaves": 63,
                    "rows": rows,
                    "compiled": True,
                    "us_a_row": 123.456,
                    "lightgbm_us_a_row": 345.6,
                }
                for rows in (1, 50)
            ],
            "state": [
                {
                    "transactions": count,
                    "snapshot_bytes": 2**30,
                    "fold_s": 123.456,
                    "load_s": 1.234,
                    "dump_s": 0.1,
                    "write_s": 12.345,
                }
                for count in (50_000, 800_000)
            ],
        },
        "in_process": {
            "taken": taken(),
            "transactions": 200_000,
            "alerts": 2_000,
            "transactions_a_second": 101_234,
            "us_a_transaction": 9.87,
            "feedback_us_a_transaction": 10.11,
            "learning_us_a_transaction": 0.4,
            "bytes_a_decision": 2_345,
            "feature_bytes_a_decision": 678,
            "stages_us": {"card: labels, forgetting, rest": 1.5, "score: build and encode decisions": 8.0},
        },
        "replay": {
            "taken": taken(),
            "transactions": 400_000,
            "labels": 4_100,
            "alerts": 900,
            "transactions_a_cpu_second": 123_456,
            "us_a_transaction": 8.1,
            "learning_us_a_transaction": 1.2,
            "stages_us": {"windows": 2.5, "LightGBM": 3.5},
        },
        "throughput": {
            "taken": taken(),
            "peers": {"python": "3.11.9", "quixstreams": "3.30.0"},
            "engines": engines,
            "ratios": ratios(engines),
            "deliveries": {engine.name: engine.delivery for engine in ENGINES},
            "missing": {"other": "there is no build/bench-venv/bin/python; `make bench` installs it"},
            "failed": {"another": "it ended with status 1: " + "a long reason " * 20},
        },
        "latency": {
            "taken": taken(),
            "rows": [
                {"mode": mode, "rate": rate, **(behind if rate == 10_000 else row)}
                for mode in ("exactly_once", "at_least_once")
                for rate in (500, 2_000, 5_000, 10_000)
            ],
        },
        "recovery": {
            "taken": taken(),
            "settings": {"rate": 500},
            "rows": [
                {"how": how, "gaps_s": [12.345] * 5, "p50_s": 12.345, "longest_s": 23.456}
                for how in ("restart", "takeover")
            ],
        },
        "scale": {
            "taken": taken(),
            "rows": [
                {"partitions": number, "workers": count, **engines["ours-b"]}
                for number, count in ((1, 1), (4, 1), (16, 1), (4, 2))
            ],
            "failed": {},
        },
    }
