"""The outcome of a run: a JSON file for programs, a summary of 80 columns for people."""

import json
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.chaos.checker import differences, summary
from tests.chaos.evidence import lacking
from tests.chaos.harness import SCALES, Outcome
from tests.chaos.schedule import Happened

WIDTH = 80
NAMED = 5
SIGKILLS = ("kill", "garbage, kill", "snapshot corrupt", "snapshot cut short", "snapshots gone")


def failures(outcome: Outcome) -> list[str]:
    """What, beside differences, a run must not show."""
    found = []
    if outcome.unfinished:
        found.append(f"not worked off in time: {outcome.unfinished}")
    found += [f"slow or bad exit: {text}" for text in outcome.fleet.slow_exits]
    found += outcome.fleet.wrong
    found += [
        f"{reject.name} ended by itself at {reject.at_s} s (exit code {reject.code}); its last lines are above"
        for reject in outcome.fleet.endings
        if not (reject.after_pause or reject.meant)
    ]
    found += [f"a snapshot failed without a fault: {text}" for text in outcome.evidence.failed_unasked[:NAMED]]
    if outcome.options.thorough:
        days, kinds = outcome.options.load.days, [fault.kind for fault in outcome.options.faults]
        found += lacking(outcome.evidence, outcome.happened, kinds, outcome.checks, outcome.rules, days)
    found += [
        f"no recovery was seen from {sent_record.kind} at {sent_record.at_s} s"
        for sent_record in unrecovered(outcome.happened)
    ]
    return found


def unrecovered(happened: Iterable[Happened]) -> list[Happened]:
    """Faults after which some partition never showed work again; the last seconds of the load do not tell."""
    found = list(happened)
    return [item for item in found[:-1] if item.monotonic_s and _meant(item) and item.recovered_s is None]


def _meant(sent_record: Happened) -> bool:
    return (
        sent_record.kind not in SCALES
        and sent_record.kind != "snapshots full"
        and sent_record.agents not in ("none", "feedback", "learn")
    )


def as_json(outcome: Outcome, options: dict[str, Any]) -> dict[str, Any]:
    """Everything worth keeping."""
    return {
        "options": options,
        "differences": differences(outcome.checks),
        "failures": failures(outcome),
        "faults": dict(Counter(sent_record.kind for sent_record in outcome.happened)),
        "sigkills_of_workers": sum(
            sent_record.kind in SIGKILLS and sent_record.agents != "none" for sent_record in outcome.happened
        ),
        "recovery_s": recoveries(outcome.happened),
        "records": {topic: len(entries) for topic, entries in outcome.logs.topics.items()},
        "inputs": dict(Counter(sent.kind for sent in outcome.ledger)),
        "seconds": {name: round(value, 1) for name, value in outcome.seconds.items()},
        "snapshots": {
            "restores_from_a_snapshot": outcome.evidence.from_snapshot,
            "restores_from_the_log_alone": outcome.evidence.from_log,
            "refused": dict(outcome.evidence.refused),
            "damage_met": outcome.evidence.met,
            "failed_while_full": outcome.evidence.failed_writes,
            "failed_upon_damage": outcome.evidence.failed_upon_damage,
            "failed_without_a_fault": len(outcome.evidence.failed_unasked),
        },
        "workers_that_ended_by_themselves": [item._asdict() for item in outcome.fleet.endings],
        "checks": summary(outcome.checks),
        "log": [
            {
                "at_s": sent_record.at_s,
                "kind": sent_record.kind,
                "what": sent_record.what,
                "recovered_s": None if sent_record.recovered_s is None else round(sent_record.recovered_s, 2),
                "met": sent_record.met,
            }
            for sent_record in outcome.happened
        ],
    }


def recoveries(happened: Iterable[Happened]) -> dict[str, dict[str, float]]:
    """Recovery by kind of fault (of kills also by agent): count, median, longest, in seconds."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for sent_record in happened:
        if sent_record.recovered_s is not None:
            name = sent_record.kind if sent_record.agents == "any" else f"{sent_record.kind} {sent_record.agents}"
            by_kind[name].append(sent_record.recovered_s)
    return {
        kind: {
            "seen": len(values),
            "p50": round(statistics.median(values), 2),
            "max": round(max(values), 2),
        }
        for kind, values in sorted(by_kind.items())
    }


def as_text(result: dict[str, Any]) -> str:
    """The summary."""
    lines = ["", "Faults" + " " * 24 + "done      recovery, s: seen    p50     max"]
    recovery = result["recovery_s"]
    for kind in sorted(set(result["faults"]) | set(recovery)):
        done, seen = result["faults"].get(kind, ""), recovery.get(kind)
        row = f"  {kind:<28}{done:>4}"
        lines.append(row + (f"{seen['seen']:>24}{seen['p50']:>7.1f}{seen['max']:>8.1f}" if seen else ""))
    lines.append(f"  SIGKILLs of workers: {result['sigkills_of_workers']}")
    ended = result["workers_that_ended_by_themselves"]
    lines.append(f"  workers that ended by themselves: {len(ended)}")
    for item in ended:
        after = ", as it must" if item.get("meant") else ", after its pause" if item["after_pause"] else ""
        lines.append(f"  {item['name']} at {item['at_s']} s (exit code {item['code']}{after}):")
        lines += [text for line in item["log"].splitlines() for text in _wrapped(line, 6)]
    lines += ["", "Snapshots"]
    for name, value in result["snapshots"].items():
        reported = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else f"{value:,}"
        lines += _wrapped(f"{name.replace('_', ' ')}: {reported or 0}")
    lines += ["", "Records"]
    lines += _wrapped(", ".join(f"{topic} {count:,}" for topic, count in result["records"].items()))
    lines += ["", "Inputs"]
    lines += _wrapped(", ".join(f"{kind} {count:,}" for kind, count in sorted(result["inputs"].items())))
    lines += ["", "Proof" + " " * 60 + "differences"]
    for check in result["checks"]:
        lines.append(f"  {check['check']:<62}{check['differences']:>12,}")
        if check["compared"]:
            lines += _wrapped(", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in check["compared"].items()), 6)
        for problem in check["problems"]:
            lines += _wrapped(problem, 6)
    lines += ["", *(line for text in result["failures"] for line in _wrapped("FAILED: " + text.splitlines()[0]))]
    verdict = "nothing lost, nothing doubled, every value reproduced"
    if result["differences"] or result["failures"]:
        verdict = f"{result['differences']:,} differences, {len(result['failures'])} other failures"
    lines += [f"Seed {result['options'].get('seed')}: {verdict}."]
    return "\n".join(lines)


def write(path: Path, result: dict[str, Any]) -> None:
    """The JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _wrapped(text: str, indent: int = 2) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent) or [""]
