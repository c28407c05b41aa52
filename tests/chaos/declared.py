"""A run under a declaration of features that is changed twice; its process has the first."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from pipeline.broker.node import embedded_broker
from pipeline.decision.policy import Policy
from pipeline.decision.rules import PolicyRule
from pipeline.demo.processes import settings_environment
from pipeline.features.catalogue import FEATURES
from pipeline.features.feature_set import FeatureSet
from pipeline.scoring.lightgbm_model import Calibration, LightGBMModel
from pipeline.settings import Settings
from pipeline.settings.features_file import features_of
from tests.chaos import check_features, check_scores, checker
from tests.chaos.brokers import Brokers
from tests.chaos.check_declared import Declared, features_equal_declared
from tests.chaos.checker import check_all
from tests.chaos.declarations import DAYS, HORIZON_DAYS
from tests.chaos.evidence import read_lines
from tests.chaos.feeder import Feeder
from tests.chaos.fleet import ALL_AGENTS
from tests.chaos.garbage import Content
from tests.chaos.harness import CHANGES, Chaos, Options
from tests.chaos.load import Load
from tests.chaos.records import Logs, Sent, save
from tests.chaos.report import as_json
from tests.chaos.run import Check, Run
from tests.chaos.schedule import Fault, declared_schedule
from tests.chaos.tail import Tail
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.champion import publish_champion
from tests.helpers.topics import command
from tests.helpers.waiting import eventually

AWAY_S = 1.0
DECIDED = 150
"""Decisions under a declaration, before the next one is published."""
OTHER_KERNEL = "other rules"
"""Cause of a difference to a live decision under another declaration."""
AGAIN = "the worker starts again with it"
OF_BUILT_IN = {
    check_features.card_features_travel_unchanged,
    check_features.features_equal_the_reference,
    check_scores.scores_are_reproduced,
    check_scores.weights_are_a_fresh_replay,
}
"""Checks that know the built-in features alone."""
CHECKS = tuple(check for check in checker.CHECKS if check not in OF_BUILT_IN)
"""Those of a run under any declaration."""

Recorded = Callable[[Path, dict[str, str]], dict[str, Any]]
"""Runs `recorded_backtest` in a process with a declaration's file and settings, and returns what it says."""


class DeclaredChaos(Chaos):
    """A run under declarations whose files are ``directory``/0.toml and so on."""

    def __init__(
        self, brokers: Brokers, directory: Path, options: Options, declarations: list[dict[str, Any]],
        recorded: Recorded,
    ) -> None:  # fmt: skip
        super().__init__(brokers, directory, options, lambda text: print(text, flush=True))
        self._files = [directory / f"{number}.toml" for number in range(len(declarations))]
        made = [FeatureSet(features_of(file)) for file in self._files]
        self.declared = {
            features.kernel_version: Declared(tables, features.card_features, features.features)
            for features, tables in zip(made, declarations, strict=True)
        }
        self._kernels = [features.kernel_version for features in made]
        self._recorded, self._active = recorded, 0
        self.rules = self.rules._replace(hasty=True)
        self._feeder: Feeder | None = None
        self._random = np.random.default_rng(options.load.seed)
        self.compared = 0

    def do(self, fault: Fault, feeder: Feeder, tail: Tail) -> bool:
        """Do a fault; but for one that chases a change, only once all workers have restored what they hold."""
        working = all("state restored" in worker.output.rpartition(AGAIN)[2] for worker in self.fleet.workers.values())
        return (working or fault.length_s == 0.0) and super().do(fault, feeder, tail)

    def may_publish(self, feeder: Feeder, tail: Tail) -> bool:
        """Return whether enough was decided under the active declaration, which has its share of the load.

        Then a score worker is killed: what is profiled meanwhile waits for it, and is scored under the next one.
        """
        self._feeder = feeder
        self._feed(0.0)
        if tail.kernels[self._kernels[self._active]] < DECIDED:
            return False
        self._feed(0.4)
        return super().do(Fault(0.0, "kill", "score", self._random.random(), AWAY_S), feeder, tail)

    def _feed(self, more: float) -> None:
        """Let the load of the declarations so far go, and a part of the next one's."""
        assert self._feeder is not None
        self._feeder.limit = int(len(self.sent) * (self._active + 1 + more) / len(self._kernels))

    def publish(self, version: int) -> None:
        """Publish models first, then the next declaration."""
        shared = set.intersection(*(set(one.names) for one in self.declared.values()))
        model = model_of({name for name in shared if not name.startswith("input_")})
        rule = PolicyRule(code="large", feature="amount", op=">=", value=200.0, sentence="The amount is 200 or more.")
        policy = Policy(0.6, blend=0.9, audit_rate=0.03, old_rules=(rule,), lightgbm_version=model.version)
        # Each time: no declaration is published while the last activation names contents that nobody can read.
        publish_champion(self.settings.kafka_bootstrap_servers or "", self.settings, model, policy)
        self.hostile.good = Content("policy", policy.version, policy.digest, policy.to_payload())
        if version > 0:
            eventually(lambda: self._changed(version))
            self._active = version
            self._feed(0.0)
            if version % 2:
                # A worker that is started later finds this one in its environment, or the one that was before.
                self.fleet.settings = self.settings.model_copy(update={"features_file": self._files[version]})

    def _changed(self, version: int) -> bool:
        """Publish a declaration; False where the open transaction of a worker that was killed hides a model."""
        done = command(self.settings, "features", "publish", str(self._files[version]))
        assert done.exit_code == 0 or "cannot be read on topic" in done.output, done.output
        for line in done.output.splitlines():
            if line.startswith(("Declaration", "Error")):
                self.tell(line)
        return done.exit_code == 0

    def checks(self, logs: Logs, sent: list[Sent]) -> list[Check]:
        """Return what the logs prove, and recorded backtests under each declaration."""

        def features(run: Run) -> Check:
            return features_equal_declared(run, self.declared)

        found = check_all(logs, sent, self.rules, (*CHECKS, features))
        decided = Counter(decision["versions"]["kernel"] for _, decision in logs.decoded("decisions"))
        for kernel, file in dict(zip(self._kernels, self._files, strict=True)).items():
            check = Check(f"a recorded backtest under {kernel} decides as live")
            own = kernel == self._kernels[0]
            said = (
                recorded_backtest(self.settings) if own else self._recorded(file, settings_environment(self.settings))
            )
            others = decided.total() - decided[kernel]
            check.count("decisions", decided[kernel])
            check.same("compared", said["compared"], decided.total())
            causes = Counter(said["causes"])
            check.same("differences to other declarations", causes.pop(OTHER_KERNEL, 0) <= others, True)
            for cause, count in causes.items():
                for _ in range(count):
                    check.differs(f"{cause}: {said['shown']}")
            self.compared += decided[kernel]
            found.append(check)
            if not decided[kernel]:
                check.differs("nothing was decided under it")
        return found


def run_declared(
    seed: int, rows: int, seconds: float, kills: int, directory: Path, declarations: list[dict[str, Any]],
    recorded: Recorded,
) -> dict[str, Any]:  # fmt: skip
    """Run, and return the figures; ``directory`` has the files of the declarations."""
    load = Load(seed, rows, DAYS, 2, horizon_days=HORIZON_DAYS, declaration=declarations[0])
    options = Options(
        load, seconds, declared_schedule(seed, seconds, kills, CHANGES), prefix=f"declared-{seed}-",
        first_agents=(("w1", "label,card"), ("w2", "score,feedback,learn")) if seed % 2 else (("w1", ALL_AGENTS),),
        features_file=directory / "0.toml",
    )  # fmt: skip
    with (
        embedded_broker(directory / "kafka") as broker,
        DeclaredChaos(Brokers(broker), directory, options, declarations, recorded) as chaos,
    ):
        outcome = chaos.run()
    result = as_json(outcome, {"seed": seed})
    compared = {check.name: check.compared for check in outcome.checks}
    features = next(counts for name, counts in compared.items() if name.startswith("features equal"))
    if result["differences"] or result["failures"]:
        save(directory / "ledger.jsonl", chaos.sent)
        save(directory / "topics.jsonl", [entry for entries in outcome.logs.topics.values() for entry in entries])
    return {
        **result,
        "transactions": result["records"]["decisions"],
        "values": features.get("values", 0),
        "sigkills": result["sigkills_of_workers"],
        "from_snapshot": outcome.evidence.from_snapshot,
        "from_log": outcome.evidence.from_log,
        "changes": len(CHANGES),
        "crossing": features.get("crossing", 0),
        "starts_again": sum(AGAIN in line.text for line in read_lines(chaos.fleet.log_dir)),
        "compared": chaos.compared,
        "compared_by_check": compared,
        "problems": [f"{check.name}: {text}" for check in outcome.checks for text in check.problems],
    }


def recorded_backtest(settings: Settings) -> dict[str, Any]:
    """Decide again what live workers decided, by the declaration of this process."""
    again = backtest_of(order="recorded", compare_live=True, settings=settings)
    again.run()
    assert again.comparison is not None
    shown = [item for item in again.comparison.differences if item.cause != OTHER_KERNEL][:2]
    return {
        "compared": again.comparison.compared,
        "causes": again.comparison.causes,
        "shown": str(shown),
    }


def model_of(names: set[str]) -> LightGBMModel:
    """Return a model of noise that asks for these features alone."""
    random = np.random.default_rng(0)
    rows = np.zeros((600, len(FEATURES)))
    used = [column for column, name in enumerate(FEATURES) if name in names]
    rows[:, used] = random.lognormal(1.0, 2.0, (len(rows), len(used)))
    fraud = rows[:, used].sum(axis=1) > np.median(rows[:, used].sum(axis=1))
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 8, "verbosity": -1, "num_threads": 1, "deterministic": True, "seed": 3},
        lightgbm.Dataset(rows, fraud.astype(float), feature_name=list(FEATURES), params={"verbosity": -1}),
        num_boost_round=10,
    )
    return LightGBMModel(booster.model_to_string(), Calibration(slope=0.8, intercept=-0.3), {"made": "for tests"})
