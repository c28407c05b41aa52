"""``python -m tests.chaos.parity``: a recorded backtest hits what live workers hit, whatever happens between.

Transactions come late, repeated and out of order. Workers are killed, join and leave. Meanwhile rules, lists and models
are changed and rolled back, and the breaker stops a rule twice. Then all decisions are made again and compared.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import numpy as np

from pipeline.broker import embedded_broker
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.settings import Settings
from schemas.messages import Decision
from schemas.topics import DECISIONS
from tests.chaos.feeder import Feeder
from tests.chaos.fleet import Fleet
from tests.chaos.harness import publish
from tests.chaos.load import Load, ledger
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.logs import decode_decision
from tests.helpers.topics import command
from tests.helpers.waiting import eventually, seconds_until
from tests.helpers.worker import Worker

PARTITIONS: Final = 4
ROWS_A_DAY: Final = 16_000
LEAST_DAYS: Final = 4.0
AHEAD_SHARE: Final = 0.01
"""Part of the load that waits for its decisions: less than what comes between two changes."""
IMPORTED: Final = 4_000
"""Entries of an imported list that nobody has."""
REPEATED: Final = ("cannot be read on topic", "somebody else wrote to topic")
"""Messages behind which a command is repeated: a transaction of a killed worker is open, or the breaker came before."""
STOPPED: Final = "rule flood is stopped"
RULES: Final = {
    "busy": ("card_count_1h >= 1 and amount > 20", "alert", 1_000_000),
    "edited": ("card_count_1h >= 1 and amount > 50", "alert", 1_000_000),
    "known": ("card_id in list('known') and amount > 60", "tag", 1_000_000),
    "likely": ("score > 0.4", "alert", 1_000_000),
    "flood": ("amount > 0", "alert", 6),
}
"""Condition, action and cap on alerts an hour; ``edited`` is another version of ``busy``."""
DIFFERING: Final = {"rules": "hits", "lists": "list hits, overruled", "score": "score", "action": "decision"}
NONE_OF: Final = ("decided twice", "not decided", "not sent", "not compared", "differences", "ended by themselves")
SOME_OF: Final = ("a day late", "with hits", "with shadow hits", "with list hits", "overruled", "SIGKILLs")


class ParityRun:
    """A run of about so many transactions in ``directory``; use as a context, which leaves no process behind."""

    def __init__(self, bootstrap: str, directory: Path, rows: int, seconds: float, kills: int, seed: int) -> None:
        days = max(LEAST_DAYS, rows / ROWS_A_DAY)
        # Nothing is older than what deduplication remembers: each transaction is decided once.
        horizon_days = days + 60.0
        self._sent = ledger(Load(seed, rows, days, PARTITIONS, horizon_days=horizon_days))
        self._wanted = {
            (item.card, item.transaction) for item in self._sent if item.topic == "transactions" and item.dead is None
        }
        self._settings = Settings(
            kafka_bootstrap_servers=bootstrap, topic_prefix="parity-", data_dir=directory / "data",
            timestamps="producer", metrics_port=0, card_partitions=PARTITIONS, merchant_partitions=PARTITIONS,
            negative_sample_rate=0.3, maturity_days=days / 4, label_grace_days=horizon_days,
            deduplication_days=horizon_days, snapshot_interval_s=5.0, shutdown_timeout_s=60.0,
        )  # fmt: skip
        self._bootstrap, self._directory, self._seconds = bootstrap, directory, seconds
        shared = {"FRAUD_PIPELINE_SNAPSHOT_URL": (directory / "snapshots").as_uri()}
        self._fleet = Fleet(self._settings, directory / "logs", shared, say=self._say)
        self._began_s = time.monotonic()
        self._decided, self._named = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self._counts, self._latest = Counter[str](), timedelta()
        self._newest: dict[int, datetime] = {}
        # Sets of rules by which `flood` acted, and how often it hit in shadow, by set.
        self._acting, self._in_shadow = set[str](), Counter[str]()
        self._random = np.random.default_rng((seed, 5))
        faults = self._random.permutation(["kill"] * kills + ["join", "leave"] * max(1, kills // 4)).tolist()
        moments = self._random.uniform(0.02, 0.97, len(faults)).tolist()
        drawn = [(moment, partial(self._fault, kind)) for moment, kind in zip(moments, faults, strict=True)]
        self._todo = sorted([*self._changes(), *drawn], key=lambda item: item[0])

    def __enter__(self) -> "ParityRun":
        ensure_topics(self._bootstrap, self._settings)
        publish(self._bootstrap, self._settings, 0)
        self._decisions = TopicFollower(self._bootstrap, self._settings, DECISIONS).start()
        self._feeder = Feeder(self._bootstrap, self._settings.topic_prefix, self._sent, self._seconds)
        breaker = ("-m", "pipeline.cli", "breaker")
        self._breaker = Worker(self._settings, self._directory / "breaker.log", breaker)
        return self

    def __exit__(self, *_: object) -> None:
        self._breaker.end()
        self._fleet.end()
        self._decisions.close()

    def run(self) -> dict[str, Any]:
        """Run, decide again, and return the figures."""
        feeder = self._feeder
        feeder.limit = ahead = max(100, round(AHEAD_SHARE * len(self._sent)))
        for name in ("w1", "w2"):
            self._fleet.start(name)
        feeder.send_first(20)
        eventually(lambda: bool(self._decided), self._follow)
        feeder.start()
        try:
            while not feeder.done:
                self._follow()
                share = len(self._decided) / len(self._wanted)
                feeder.limit = min(round(share * len(self._sent)) + ahead, len(self._sent))
                if self._todo and share >= self._todo[0][0]:
                    self._todo.pop(0)[1]()
            feeder.finish()
        finally:
            feeder.stop()
        seconds_until(lambda: len(self._decided) >= len(self._wanted), meanwhile=self._follow)
        live_s = time.monotonic() - self._began_s
        self._fleet.stop()
        assert self._breaker.stop() == 0, self._breaker.output
        for record in self._decisions.read_committed(lambda: None):
            self._add(decode_decision(record.value or b""))
        return self._figures(live_s)

    def _changes(self) -> list[tuple[float, Callable[[], None]]]:
        """Return what operators do, each at its share of the load."""
        cards = sorted({item.card for item in self._sent if item.card})
        stolen, others, quiet, watched = cards[:6], cards[6:9], cards[10:20], cards[20:90]
        half = datetime.fromtimestamp(self._sent[len(self._sent) // 2].timestamp_ms / 1_000, UTC).isoformat()
        by_card = ("--field", "card_id", "--kind")
        for_long = ("suppress", "--for", "90d", "--cap", "1000000000")
        do, lists = partial(partial, self._command), partial(partial, self._command, "lists")
        steps: list[Callable[[], None]] = [
            partial(self._rule, "likely"),
            partial(self._rule, "busy"),
            lists("add", "stolen", *stolen, *by_card, "block"),
            partial(self._import, cards[::2]),
            partial(self._rule, "known"),
            partial(publish, self._bootstrap, self._settings, 1),
            lists("add", "trusted", *others, *by_card, "allow", "--for", "30d"),
            partial(self._rule, "flood"),
            partial(self._await_stop, 1),
            partial(self._rule, "busy", "edited"),
            lists("remove", "stolen", *stolen[:2]),
            partial(publish, self._bootstrap, self._settings, 2),
            lists("add", "quiet", *quiet, *by_card, *for_long),
            lists("add", "half", *watched, *by_card, "watch", "--until", half),
            # Back to the version before.
            partial(self._rule, "busy"),
            lists("add", "unheard", "busy", "--field", "rule", "--kind", *for_long),
            do("rules", "activate", "flood"),
            do("models", "rollback"),
            partial(self._await_stop, 2),
            partial(self._import, cards[::3], "--replace"),
            lists("remove", "unheard", "busy"),
            do("rules", "retire", "flood"),
            lists("remove", "quiet", *quiet[:5]),
            do("rules", "retire", "likely"),
        ]
        return [(number / (len(steps) + 1), step) for number, step in enumerate(steps, 1)]

    def _rule(self, code: str, content: str = "") -> None:
        """Put a rule, or another version of it, in shadow and then make it act."""
        condition, action, cap = RULES[content or code]
        file = self._directory / f"{code}.sql"
        file.write_text(
            f"-- code: {code}\n-- owner: dana\n-- reason: Because of {code}.\n-- action: {action}\n"
            f"-- max-alerts-per-hour: {cap}\n-- max-hit-rate: 1\n{condition}\n"
        )
        self._command("rules", "publish", str(file))
        self._command("rules", "activate", code, "--untested")

    def _import(self, cards: Sequence[str], *options: str) -> None:
        file = self._directory / "known.csv"
        file.write_text("\n".join(["value", *cards, *(f"{len(cards)}-{number}" for number in range(IMPORTED))]))
        self._command("lists", "import", "known", str(file), "--kind", "watch", "--field", "card_id", *options)

    def _command(self, *arguments: str) -> None:
        why = ("--reason", "A test.", "--by")
        while (done := command(self._settings, *arguments, *why, "dana")).exit_code:
            assert any(text in done.output for text in REPEATED), f"{arguments}: {done.output} {done.exception!r}"
            self._follow()
        if "is proposed" in done.output:
            change = done.output.partition("Change ")[2].split()[0]
            command(self._settings, "lists", "approve", change, *why, "mona", code=0)
        self._say(f"{' '.join(arguments[:3])}: {done.output.splitlines()[-1]}")

    def _await_stop(self, times: int) -> None:
        def follow() -> None:
            self._follow()
            # What was already on its way may have been decided before the rule acted.
            self._feeder.limit = min(self._feeder.limit + 1, len(self._sent))

        eventually(lambda: self._breaker.output.count(STOPPED) >= times, follow)

    def _fault(self, kind: str) -> None:
        """Kill a worker and start it again, let another one join, or the newest leave; there are two at least."""
        fleet, names = self._fleet, sorted(self._fleet.workers)
        name = names[-1]
        if kind == "kill":
            name = str(self._random.choice(names))
            fleet.kill(name)
        elif kind == "leave":
            fleet.terminate(name)
        else:
            name = f"w{len(names) + 1}"
        if kind != "leave" or len(names) == 2:
            fleet.start(name)
        self._counts["SIGKILLs" if kind == "kill" else kind] += 1
        self._say(f"{kind}: {name}")

    def _follow(self) -> None:
        for record in self._decisions.poll(0.05):
            self._add(decode_decision(record.value or b""))
        self._fleet.watch(time.monotonic() - self._began_s)

    def _add(self, decision: Decision) -> None:
        self._decided[decision.card_id, decision.transaction_id] += 1
        newest = self._newest.get(decision.log.partition, decision.event_time)
        late = newest - decision.event_time
        self._newest[decision.log.partition] = max(newest, decision.event_time)
        self._latest = max(self._latest, late)
        holding = {
            "out of order": late > timedelta(),
            "a day late": late > timedelta(days=1),
            "with hits": decision.rule_hits,
            "with shadow hits": decision.shadow_hits,
            "with list hits": decision.list_hits,
            "overruled": decision.overruled,
            f"alerts by {decision.selection}": decision.selection,
        }
        self._counts.update(name for name, holds in holding.items() if holds)
        for kind in ("rules", "lists", "policy", "lightgbm", "river"):
            self._named[kind, getattr(decision.versions, kind)] += 1
        if "flood" in decision.rule_hits:
            self._acting.add(decision.versions.rules)
        self._in_shadow[decision.versions.rules] += "flood" in decision.shadow_hits

    def _figures(self, live_s: float) -> dict[str, Any]:
        began_s = time.monotonic()
        again = backtest_of(order="recorded", compare_live=True, settings=self._settings)
        again.run()
        assert again.comparison is not None
        found = again.comparison
        differing = Counter(name for difference in found.differences for name in difference.differs.split(","))
        return {
            "inputs": len(self._sent),
            "transactions": len(self._wanted),
            "decided twice": sum(count > 1 for count in self._decided.values()),
            "not decided": len(self._wanted - self._decided.keys()),
            "not sent": len(self._decided.keys() - self._wanted),
            "days of the latest": round(self._latest / timedelta(days=1), 1),
            **dict(sorted(self._counts.items())),
            "capped by a partition": sum(self._in_shadow[version] for version in self._acting),
            "stopped by the breaker": self._breaker.output.count(STOPPED),
            "versions": dict(Counter(kind for kind, version in self._named if version)),
            "ended by themselves": [ending.log for ending in self._fleet.endings],
            "seconds live": round(live_s),
            "seconds of the backtest": round(time.monotonic() - began_s),
            "compared": found.compared,
            "not compared": len(self._wanted) - found.compared,
            "differences": len(found.differences),
            **{f"differences in {text}": differing.pop(name, 0) for name, text in DIFFERING.items()},
            "differences in others": dict(differing),
            "first differences": [str(difference) for difference in found.differences[:5]],
        }

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began_s:7.1f} s  {len(self._decided):8,} decided  {text}", flush=True)


def wrong(found: dict[str, Any]) -> list[str]:
    """Return the figures that must be zero and are not, and those that must not be."""
    return [name for name in NONE_OF if found[name]] + [name for name in SOME_OF if not found.get(name)]


@click.command()
@click.option("--transactions", default=500_000, show_default=True, help="How many, about.")
@click.option("--seconds", default=500.0, show_default=True, help="Time within which they are sent, at least.")
@click.option("--kills", default=16, show_default=True, help="SIGKILLs of workers.")
@click.option("--seed", default=1, show_default=True, help="Of load, kills, joins and leaves.")
def main(transactions: int, seconds: float, kills: int, seed: int) -> None:
    """Compare a recorded backtest with live decisions through kills, rebalances and changes of all that decides."""
    with (
        TemporaryDirectory(prefix="parity-") as scratch,
        embedded_broker(Path(scratch) / "kafka") as broker,
        ParityRun(broker.bootstrap_servers, Path(scratch), transactions, seconds, kills, seed) as run,
    ):
        found = run.run()
    print(json.dumps(found, indent=1))
    sys.exit(f"wrong: {', '.join(wrong(found))}" if wrong(found) else 0)


if __name__ == "__main__":
    main()
