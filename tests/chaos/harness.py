"""A run: broker, workers, load, faults on schedule, then quiet, then the proof."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from confluent_kafka import IsolationLevel

from pipeline.decision.policy import Policy
from pipeline.decision.rules import PolicyRule
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.log_offsets import last_offsets
from pipeline.kafka.cluster.retries import retried
from pipeline.scoring.lightgbm_model import Calibration, LightGBMModel
from pipeline.settings import Settings
from tests.chaos.arithmetic import DAY_US
from tests.chaos.assaults import name_twice, name_twice_elsewhere, slow_clients, state_deleted
from tests.chaos.brokers import Brokers
from tests.chaos.check_digests import states_are_functions_of_the_log
from tests.chaos.checker import check_all
from tests.chaos.endpoint import address, oldest_undecided
from tests.chaos.evidence import Evidence, gather, read_lines
from tests.chaos.feeder import Feeder
from tests.chaos.fleet import ALL_AGENTS, Fleet, Running
from tests.chaos.garbage import Content
from tests.chaos.hostile import Hostile
from tests.chaos.load import Load, ledger
from tests.chaos.records import Logs, Sent, read_logs
from tests.chaos.run import Check, Rules
from tests.chaos.schedule import BROKER_KINDS, KINDS, Fault, Happened
from tests.chaos.snapshots import SnapshotPlace
from tests.chaos.tail import Tail
from tests.helpers.champion import publish_champion
from tests.helpers.models import small_model
from tests.helpers.offsets import committed_offsets
from tests.helpers.waiting import seconds_until

PREFIX = "chaos-"
POLL_S = 0.1
FIRST_DECISION_S = 300.0
FIRST_INPUTS = 20
QUIET_S = 3.0
CHANGES = (0.35, 0.7)
"""Shares of the time after which something else becomes active."""
LAST_WORK_S = 5.0
"""A fault so near to the end of the load, or behind it, may see no work of after it: its recovery is not measured."""
WORK_OFF_S = 240.0
CARD_PARTITIONS, MERCHANT_PARTITIONS = 2, 2
SAMPLE_RATE = 0.3
SNAPSHOT_INTERVAL_S = 3.0
"""Often enough that a short run has several."""
SHUTDOWN_S, CLUSTER_SHUTDOWN_S = 8.0, 30.0
"""Longest end of a worker. A client goes on waiting for a coordinator that has moved to another broker of several."""
FULL_AT_LEAST_S = 8.0
"""Longer than the time between two snapshots."""
TRY_AGAIN_S = 4.0
"""After this a fault that could not be done is tried again."""
GROUPS = {
    "label": ("labels",),
    "card": ("transactions", "rerouted", "accepted-labels"),
    "score": ("profiled",),
    "feedback": ("accepted-labels", "features"),
    "learn": ("examples",),
}
DAMAGED_SNAPSHOT = "is not used (damaged)"
RESTORE_S = 20.0
"""Longest time until a worker that was started comes to restore its partitions."""
UNTAILED = ("transactions", "labels")
WRITTEN = ("garbage", "bomb", "damaged batch", "bad disk", "open transaction")
"""Faults of what topics hold."""
PARTITIONS = {
    **dict.fromkeys(
        ("transactions", "labels", "rerouted", "accepted-labels", "decisions", "features", "progress"), CARD_PARTITIONS
    ),
    "profiled": MERCHANT_PARTITIONS,
    **dict.fromkeys(("examples", "models", "control"), 1),
}
MOST_QUARANTINED = 1_000
"""A run makes more records fail than an operator would let pass."""


class ChaosError(RuntimeError):
    """The run could not be made; what it was to prove is not known."""


@dataclass(frozen=True)
class Options:
    """What to run; times in seconds of the wall clock."""

    load: Load
    seconds: float
    faults: Sequence[Fault]
    maturity_days: float = 5.0
    first_agents: tuple[tuple[str, str], ...] = (("w1", ALL_AGENTS),)
    work_off_s: float = WORK_OFF_S
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    protocol: Literal["auto", "consumer", "classic"] = "auto"
    prefix: str = PREFIX
    features_file: Path | None = None
    thorough: bool = False
    """Whether the run must have met everything that it is for (`tests.chaos.evidence`)."""


@dataclass
class Outcome:
    """What a run left."""

    logs: Logs
    ledger: list[Sent]
    rules: Rules
    checks: list[Check]
    happened: list[Happened]
    seconds: dict[str, float]
    fleet: Fleet
    unfinished: str
    """Empty, or what had not been worked off in time."""
    evidence: Evidence
    options: Options


class Chaos:
    """One run in ``directory``; use as a context, which leaves no process and no mount behind."""

    def __init__(self, brokers: Brokers, directory: Path, options: Options, say: Callable[[str], None]) -> None:
        self._brokers, self._options, self._say = brokers, options, say
        self.snapshots = SnapshotPlace(directory / "snapshots")
        self.settings = Settings(
            kafka_bootstrap_servers=brokers.bootstrap_servers,
            topic_prefix=options.prefix,
            data_dir=directory / "data",
            **({} if options.features_file is None else {"features_file": options.features_file}),
            timestamps="producer",
            card_partitions=CARD_PARTITIONS,
            merchant_partitions=MERCHANT_PARTITIONS,
            negative_sample_rate=SAMPLE_RATE,
            maturity_days=options.maturity_days,
            label_grace_days=options.load.horizon_days,
            deduplication_days=options.load.horizon_days,
            delivery=options.delivery,
            group_protocol=options.protocol,
            snapshot_interval_s=SNAPSHOT_INTERVAL_S,
            quarantine_limit=MOST_QUARANTINED,
            metrics_port=0,
            shutdown_timeout_s=SHUTDOWN_S if brokers.count == 1 else CLUSTER_SHUTDOWN_S,
        )
        self.rules = Rules(
            card_partitions=CARD_PARTITIONS,
            merchant_partitions=MERCHANT_PARTITIONS,
            negative_sample_rate=SAMPLE_RATE,
            maturity_us=round(options.maturity_days * DAY_US),
            label_horizon_us=round(options.load.horizon_days * DAY_US),
            dedup_horizon_us=round(options.load.horizon_days * DAY_US),
            prefix=options.prefix,
            exactly_once=options.delivery == "exactly_once",
        )
        environment = {"FRAUD_PIPELINE_SNAPSHOT_URL": self.snapshots.directory.as_uri()}
        self.fleet = Fleet(self.settings, directory / "logs", environment, say=self.tell, brokers=brokers.count)
        self.hostile = Hostile(brokers, options.prefix, PARTITIONS)
        self._elsewhere = directory / "elsewhere"
        self._restored = directory / "restored"
        self.happened: list[Happened] = []
        self.sent: list[Sent] = []
        self.logs: Logs | None = None
        """What was read for the proof, once it was."""
        self._bootstrap = brokers.bootstrap_servers
        self._started_s = time.monotonic()
        self._timers: list[threading.Timer] = []

    def __enter__(self) -> "Chaos":
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel_timers()
        self._brokers.wait()
        self.fleet.end()
        self.snapshots.close()

    def run(self) -> Outcome:
        """Everything; raises `ChaosError` where no proof is possible, and what broker and workers raise."""
        options, seconds = self._options, {}
        self.sent = sent = ledger(options.load)
        ensure_topics(self._bootstrap, self.settings)
        self.publish(0)
        for name, agents in options.first_agents:
            self.fleet.start(name, agents)
        feeder = Feeder(self._bootstrap, options.prefix, sent, options.seconds)
        tail = Tail(self._bootstrap, options.prefix, CARD_PARTITIONS)
        tail.start()
        try:
            began_s = time.monotonic()
            feeder.send_first(FIRST_INPUTS)
            self._await(lambda: tail.counts["decisions"] > 0, FIRST_DECISION_S, "no decision came", tail)
            self._started_s = time.monotonic()
            feeder.start()
            seconds["to the first decision"] = self._started_s - began_s
            self._misbehave(feeder, tail)
            feeder.finish()
            seconds["under load and faults"] = self._now_s()
            unfinished = self._work_off(feeder, tail)
            seconds["until everything was worked off"] = self._now_s() - seconds["under load and faults"]
        finally:
            feeder.stop()
            tail.stop()
        for item in self.happened:
            if item.monotonic_s > feeder.ended_s - LAST_WORK_S:
                item.monotonic_s = 0.0
            self._look_for_recovery(item, tail)
        self.fleet.stop()
        reading_s = time.monotonic()
        self.sent = sent = [*sent, *self.hostile.sent]
        self.logs = logs = read_logs(self._bootstrap, options.prefix)
        self.rules = self.rules._replace(broker_deaths=self._brokers.deaths)
        checks = self.checks(logs, sent)
        seconds["to read and check"] = time.monotonic() - reading_s
        evidence = gather(read_lines(self.fleet.log_dir), self.happened)
        return Outcome(
            logs, sent, self.rules, checks, self.happened, seconds, self.fleet, unfinished, evidence, options
        )

    def publish(self, version: int) -> None:
        """Publish what is active from the beginning (0), after a third and after two thirds of the time (1, 2)."""
        self.hostile.good = publish(self._bootstrap, self.settings, version)
        self.tell(f"models {version} published")

    def may_publish(self, feeder: Feeder, tail: Tail) -> bool:
        """Return whether what comes next may become active now."""
        del feeder, tail
        return True

    def checks(self, logs: Logs, sent: list[Sent]) -> list[Check]:
        """Return what the logs prove, with no worker left."""
        checks = check_all(logs, sent, self.rules)
        if self.rules.exactly_once:
            checks.append(states_are_functions_of_the_log(self._bootstrap, self.kept_settings, self._restored))
        return checks

    @property
    def kept_settings(self) -> Settings:
        """The workers' settings, with the address of their snapshots."""
        return self.settings.model_copy(update={"snapshot_url": self.snapshots.directory.as_uri()})

    def _misbehave(self, feeder: Feeder, tail: Tail) -> None:
        """Do the faults at their times, for as long as there is load; new models come in between.

        A short run does all of its faults: on a busy machine a broker's start outlasts the load.
        """
        waiting = list(self._options.faults)
        swaps = [share * self._options.seconds for share in CHANGES]
        while not feeder.done or ((waiting or swaps) and not self._options.thorough):
            now_s = self._now_s()
            self._check(tail)
            if waiting and waiting[0].at_s <= now_s:
                fault = waiting.pop(0)
                if not self.do(fault, feeder, tail):
                    waiting = sorted([*waiting, fault._replace(at_s=now_s + TRY_AGAIN_S)], key=lambda item: item.at_s)
            elif swaps and swaps[0] <= now_s and not self._brokers.busy and self.may_publish(feeder, tail):
                swaps.pop(0)
                self.publish(2 - len(swaps))
            else:
                time.sleep(POLL_S)
        for fault in waiting:
            self.tell(f"not done: {fault.kind}")

    def do(self, fault: Fault, feeder: Feeder, tail: Tail) -> bool:
        """Do a fault; False where it cannot be done now, and then it is as if nothing had happened."""
        self._cancel_timers(only_ended=True)
        what, agents = fault.kind, "any"
        item = Happened(round(self._now_s(), 1), fault.kind, "", wall_s=time.time(), monotonic_s=time.monotonic())
        if fault.kind in SCALES:
            what = self._scale(SCALES[fault.kind])
        elif fault.kind in BROKER_KINDS:
            if self._brokers.busy:
                return False
            what = self._brokers.hurt(fault)
        elif fault.kind in WRITTEN:
            written = None if self._brokers.busy else self._write(fault, item, feeder, tail)
            if written is None:
                return False
            what, agents = written, "any" if fault.kind == "bad disk" else "none"
        else:
            if fault.kind == "garbage, kill":
                self.hostile.garbage({**feeder.ends, **tail.ends})
            worker = self.fleet.pick(fault.target, fault.draw)
            if fault.kind.startswith("snapshot") and worker is not None and not self._has_snapshots(worker):
                able = [other for other in self.fleet.workers.values() if self._has_snapshots(other)]
                worker = able[0] if able else None
            done = None if worker is None else self._hurt(fault, worker.name, worker.agents, item)
            if worker is None or done is None:
                return False
            agents = item.agents if item.agents == "none" else worker.agents if worker.agents in KINDS else "any"
            what = f"{worker.name}: {done}"
        item.what, item.agents = what, agents
        self.happened.append(item)
        self.tell(f"{fault.kind}: {what}")
        return True

    def _kept_by(self, agents: str) -> list[str]:
        return [self.settings.topic(agent) for agent in agents.split(",")]

    def _has_snapshots(self, worker: Running) -> bool:
        return bool(self.snapshots.newest(self._kept_by(worker.agents)))

    def _hurt(self, fault: Fault, name: str, agents: str, item: Happened) -> str | None:
        """What was done to a worker, or to the snapshots of its agents; None: it could not be."""
        fleet, place = self.fleet, self.snapshots
        match fault.kind:
            case "kill" | "garbage, kill":
                fleet.kill(name)
                time.sleep(fault.length_s)
                fleet.start(name, agents)
                return f"killed, away for {fault.length_s:.1f} s"
            case "pause":
                fleet.pause(name)
                self._later(fault.length_s, lambda: fleet.go_on(name))
                return f"stopped for {fault.length_s:.1f} s"
            case "terminate" | "terminate twice":
                took_s = fleet.terminate(name, twice=fault.kind == "terminate twice")
                fleet.start(name, agents)
                return f"ended after {took_s:.1f} s"
            case "slow clients":
                item.agents = "none"
                return slow_clients(fleet, fleet.workers[name])
            case "state deleted":
                return state_deleted(fleet, fleet.workers[name])
            case "name twice":
                return name_twice(fleet, fleet.workers[name])
            case "name twice elsewhere":
                return name_twice_elsewhere(fleet, fleet.workers[name], self._elsewhere)
            case "snapshots full":
                full = place.fill()
                if full is not None:
                    self._later(max(FULL_AT_LEAST_S, fault.length_s), place.empty_again)
                return full
        fleet.kill(name)
        if fault.kind == "snapshots gone":
            what = f"{place.remove_all()} files removed"
        else:
            cut = fault.kind == "snapshot cut short"
            item.snapshots = tuple(place.damage(self._kept_by(agents), cut=cut, draw=float(fault.draw * 1e3 % 1)))
            what = ", ".join(item.snapshots)
        fleet.start(name, agents)
        if item.snapshots:
            # Another kill now, or snapshots that are removed, and nobody would ever read what was damaged.
            seconds_until(lambda: DAMAGED_SNAPSHOT in fleet.workers[name].output, RESTORE_S)
        return f"killed; {what}"

    def _write(self, fault: Fault, item: Happened, feeder: Feeder, tail: Tail) -> str | None:
        """Write what a fault puts into topics; None where it cannot be done now."""
        match fault.kind:
            case "garbage":
                return self.hostile.garbage({**feeder.ends, **tail.ends})
            case "bomb":
                return self.hostile.bomb(fault.draw, feeder.clock_ms)
            case "damaged batch" | "bad disk":
                running = {name: worker.agents for name, worker in self.fleet.workers.items()}
                for name in running:
                    self.fleet.kill(name)
                if fault.kind == "bad disk":
                    what = self._damage_leader(fault.draw, feeder)
                else:
                    what = self.hostile.damage(fault.draw)
                for name, agents in running.items():
                    self.fleet.start(name, agents)
                return what and f"all workers killed; {what}"
            case _:
                item.met = False
                return self.hostile.leave_open(fault.draw, fault.length_s, self._age, lambda met: _meet(item, met))

    def _damage_leader(self, draw: float, feeder: Feeder) -> str | None:
        """Damage a batch that no worker has read, on its leader's disk; repaired once a worker has met it."""
        topic = ("transactions", "labels")[int(draw * 1e3) % 2]
        name, partition = self.settings.topic(topic), int(draw * 1e6) % PARTITIONS[topic]
        damaged = self._brokers.damage_leader(name, partition, feeder.ends.get((topic, partition), 0))
        if damaged is None:
            return None
        node, base = damaged
        reported = f"{name} partition {partition}: the disk of its leader has damaged offsets {base} to"
        workers = self.fleet.workers
        self._brokers.repair(
            node, name, partition, lambda: any(reported in worker.output for worker in list(workers.values()))
        )
        return f"{topic} {partition} offset {base} on broker {node.number}, which leads it"

    def _age(self, topic: str, partition: int) -> float | None:
        """As any worker's metrics have it."""
        listening = [address(worker.output) for worker in list(self.fleet.workers.values()) if not worker.is_paused]
        return oldest_undecided([item for item in listening if item], self.settings.topic(topic), partition)

    def _scale(self, wanted: Mapping[str, str]) -> str:
        """Have exactly these workers: start what is missing, end what is too many."""
        for name, agents in wanted.items():
            if name not in self.fleet.workers:
                self.fleet.start(name, agents)
        for name in sorted(self.fleet.workers.keys() - wanted.keys()):
            self.fleet.go_on(name)
            self.fleet.terminate(name)
        return ", ".join(wanted)

    def _later(self, after_s: float, do: Callable[[], None]) -> None:
        timer = threading.Timer(after_s, do)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _cancel_timers(self, *, only_ended: bool = False) -> None:
        for timer in list(self._timers):
            if only_ended and timer.is_alive():
                continue
            if timer.is_alive():
                timer.cancel()
                timer.function()
            self._timers.remove(timer)

    def _work_off(self, feeder: Feeder, tail: Tail) -> str:
        """End all faults and wait until all is worked off and nothing comes any more; what is left, if not."""
        self._cancel_timers()
        self._brokers.finish()
        self.hostile.finish()
        self.snapshots.empty_again()
        for name in list(self.fleet.workers):
            self.fleet.go_on(name)
        deadline_s = time.monotonic() + self._options.work_off_s
        while True:
            self._check(tail)
            left = self._left(feeder, tail)
            if not left and time.monotonic() - tail.last_arrival_s > QUIET_S:
                return ""
            if time.monotonic() > deadline_s:
                return ", ".join(f"{n} of {what}" for what, n in left.items()) or "records kept coming"
            time.sleep(5 * POLL_S)

    def _left(self, feeder: Feeder, tail: Tail) -> dict[str, int]:
        """Records that a group has not committed, by agent and topic, and partitions whose end cannot be read yet.

        What a transaction wrote can be read once its markers are there, which may be long after its offsets count,
        where the broker restarts: without the second the last records would be given up before anyone can see them.
        """
        left: dict[str, int] = {}
        if unreadable := self._unreadable():
            left["partitions under a transaction"] = unreadable
        # A version is published behind its examples: later, where a broker's death ended its transaction.
        if (unpublished := tail.examples_end - tail.learned_end) > 0:
            left["examples without a version"] = unpublished
        for agent, topics in GROUPS.items():
            names = [self.settings.topic(topic) for topic in topics]
            there = committed_offsets(self._bootstrap, self.settings.topic(agent), names, settings=self.settings)
            for topic in topics:
                name = self.settings.topic(topic)
                # Not the ends of the logs, where marks of transactions may stand.
                known = [feeder.ends, self.hostile.ends] if topic in UNTAILED else [tail.ends]
                wanted: dict[int, int] = {}
                for (source, number), end in (item for ends in known for item in list(ends.items())):
                    if source == topic:
                        wanted[number] = max(end, wanted.get(number, 0))
                behind = sum(max(0, end - max(0, there.get((name, n), 0))) for n, end in wanted.items())
                if behind:
                    left[f"{agent}/{topic}"] = behind
        return left

    def _unreadable(self) -> int:
        client = admin_client(self._bootstrap, settings=self.settings)
        places = [
            (name, number)
            for name, about in retried(lambda: client.list_topics(timeout=10)).topics.items()
            if name.startswith(self.settings.topic_prefix)
            for number in about.partitions
        ]
        written = retried(lambda: last_offsets(client, places, IsolationLevel.READ_UNCOMMITTED))
        readable = retried(lambda: last_offsets(client, places, IsolationLevel.READ_COMMITTED))
        return sum(readable[place] < end for place, end in written.items())

    def _await(self, holds: Callable[[], bool], timeout_s: float, otherwise: str, tail: Tail) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            self._check(tail)
            if self.fleet.endings:
                raise ChaosError(f"{otherwise}, and a worker ended by itself:\n{self.fleet.endings[0].log}")
            if time.monotonic() > deadline_s:
                raise ChaosError(f"{otherwise} within {timeout_s:.0f} s; read {self.fleet.log_dir}")
            time.sleep(POLL_S)

    def _check(self, tail: Tail) -> None:
        self._brokers.check()
        self.fleet.watch(self._now_s())
        if tail.error is not None:
            raise tail.error

    def _look_for_recovery(self, sent_record: Happened, tail: Tail) -> None:
        if (
            not sent_record.monotonic_s
            or sent_record.kind in SCALES
            or sent_record.kind == "snapshots full"
            or sent_record.agents == "none"
        ):
            return
        seen_s = tail.recovered(sent_record.wall_s, sent_record.agents, MERCHANT_PARTITIONS)
        sent_record.recovered_s = None if seen_s is None else seen_s - sent_record.monotonic_s

    def _now_s(self) -> float:
        return time.monotonic() - self._started_s

    def tell(self, text: str) -> None:
        """Say what happens, with its time."""
        self._say(f"{self._now_s():7.1f} s  {text}")


SCALES: dict[str, dict[str, str]] = {
    "three workers": dict.fromkeys(("w1", "w2", "w3"), ALL_AGENTS),
    "two workers": dict.fromkeys(("w1", "w2"), ALL_AGENTS),
    "one worker": dict.fromkeys(("w1",), ALL_AGENTS),
    "a worker for each agent": {
        **{f"{agent}-{n}": agent for agent in ("card", "score") for n in (1, 2)},
        "label-1": "label",
        "feedback-1": "feedback",
        "learn-1": "learn",
    },
}
"""Fleets that a run passes through."""


def _meet(item: Happened, met: bool) -> None:
    item.met = met


def publish(bootstrap: str, settings: Settings, version: int) -> Content:
    """Activate LightGBM's version and policy number ``version``, and return the policy.

    1 is a new policy, 2 also a new champion.
    """
    model: LightGBMModel = small_model()
    if version == 2:
        payload: dict[str, Any] = {"made": "for the second half"}
        model = LightGBMModel(_text(model), Calibration(slope=0.9, intercept=-0.1), payload)
    rule = PolicyRule(code="large", feature="amount", op=">=", value=200.0, sentence="The amount is 200 or more.")
    policy = Policy(
        (0.6, 0.5, 0.55)[version],
        blend=(1.0, 0.7, 0.9)[version],
        audit_rate=0.03,
        old_rules=(rule,),
        lightgbm_version=model.version,
    )
    publish_champion(bootstrap, settings, model, policy)
    return Content("policy", policy.version, policy.digest, policy.to_payload())


def _text(model: LightGBMModel) -> str:
    return str(msgspec.json.decode(model.to_payload())["text"])
