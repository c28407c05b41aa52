"""The service that renews models on a real cluster: history in, a new version active, a bad one taken back."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from pipeline.decision.policy import Policy
from pipeline.models.publish import VersionToPublish, publish_active
from pipeline.retraining.cluster_reader import BY
from pipeline.scoring.distributions import FeatureDistribution
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.simulation.simulator import Scenario, make_profiles, simulate_days
from pipeline.training.cold_start import treeless_model
from schemas.messages import Activation, LearningSwitch
from schemas.topics import ACCEPTED_LABELS, CONTROL
from tests.helpers.champion import policy
from tests.helpers.models import small_model
from tests.helpers.pages import compare, shown
from tests.helpers.topics import Cluster, Starter, command
from tests.helpers.worker import Worker

pytestmark = pytest.mark.broker

DAYS, BUDGET = 24, 6
OPTIONS = ("--maturity-days", "2", "--compare-days", "6", "--validation-days", "4", "--budget-per-day", str(BUDGET))


def history() -> pd.DataFrame:
    """A small population, of which enough is compromised."""
    scenario = Scenario(merchants_per_day=1, merchant_days=3, cards_per_day=2, card_days=7)
    made = simulate_days(make_profiles(np.random.default_rng(4), 70, 140, scenario), 4, 0, DAYS)
    return made[made["amount_minor"] > 0].reset_index(drop=True)


def buy(cluster: Cluster, frame: pd.DataFrame) -> None:
    for number, row in enumerate(frame.itertuples(), int(frame.index[0])):
        at = row.event_time.to_pydatetime()
        cluster.buy(number, at, card_id=row.card_id, merchant_id=row.merchant_id, amount=row.amount_minor / 100)
    cluster.flush()


def retrain(start: Starter, cluster: Cluster, *options: str) -> tuple[dict[str, Any], Worker]:
    """Run one cycle; returns the line that it prints."""
    process = start(cluster.settings, "-m", "pipeline.cli", "retrain", "--once", *OPTIONS, *options)
    assert process.code() == 0, process.output
    return json.loads(process.output.splitlines()[-1]), process


def activations(cluster: Cluster) -> Sequence[Activation]:
    decode = msgspec.json.Decoder(Activation | LearningSwitch).decode
    items = [decode(record.value or b"") for record in cluster.read(CONTROL) if record.key != b"assessment"]
    return [item for item in items if isinstance(item, Activation)]


@pytest.fixture
def models(cluster: Cluster) -> Callable[..., str]:
    """Runs a subcommand of ``fraud-pipeline models`` where two people have to agree."""
    agreed = cluster.settings.model_copy(update={"maturity_days": 2, "second_approval": True})

    def run(*arguments: str, code: int = 0) -> str:
        return command(agreed, "models", *arguments, "--reason", "A test.", code=code).output

    return run


def test_a_challenger_becomes_active_and_a_bad_version_goes_again(
    cluster: Cluster, start: Starter, models: Callable[..., str]
) -> None:
    cluster.publish()
    bought = history()
    later = bought[bought["event_time"] > bought["event_time"].iloc[-1] - pd.Timedelta(days=1)].copy()
    assert len(later) > 10 * BUDGET
    buy(cluster, bought)
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= len(bought))
    for number, row in enumerate(bought.itertuples()):
        if row.fraud:
            at = row.event_time.to_pydatetime() + pd.Timedelta(days=1)
            cluster.say((row.card_id, f"t{number}"), at)
    cluster.flush()
    worker.until(lambda: len(cluster.read(ACCEPTED_LABELS)) >= int(bought["fraud"].sum()))

    found, process = retrain(start, cluster)
    assert found["outcome"] == json.loads(shown("docs/models.md", "$ fraud-pipeline retrain")[1].shown), found
    assert "replaces" in process.output
    promoted = activations(cluster)[-1]
    assert (promoted.step, promoted.by) == ("promote", BY)
    assert {version.name: version.version for version in promoted.versions} == {
        "lightgbm": found["lightgbm"],
        "policy": found["policy"],
    }
    assert promoted.figures["rows"] == len(bought)
    assert promoted.figures["compared_with"] == "served"
    assert sum(promoted.figures["offsets"]["accepted-labels"].values()) >= int(bought["fraud"].sum())

    # A day later everything goes on under the new version, until somebody publishes one that alerts on everything.
    worker.until_active("lightgbm", found["lightgbm"])
    later["event_time"] += pd.Timedelta(days=1)
    later.index = range(len(bought), len(bought) + len(later))
    half = len(later) // 2
    buy(cluster, later.iloc[:half])
    worker.until(lambda: len(cluster.decisions()) >= len(bought) + half)
    assert served(cluster, len(bought)) == {found["lightgbm"]}
    good = small_model()
    loud = LightGBMModel(good._text, msgspec.structs.replace(good.calibration, intercept=9.0))
    bad_policy = policy(0.5, lightgbm_version=loud.version)
    contents = [("lightgbm", loud.version, loud.to_payload()), ("policy", bad_policy.version, bad_policy.to_payload())]
    publish_active(cluster.bootstrap, cluster.settings, [VersionToPublish(*content) for content in contents])
    worker.until_active("lightgbm", loud.version)
    buy(cluster, later.iloc[half:])
    worker.until(lambda: len(cluster.decisions()) >= len(bought) + len(later))
    assert served(cluster, len(bought) + half) == {loud.version}

    back, process = retrain(start, cluster)
    assert (back["outcome"], back["lightgbm"]) == ("rolled_back", found["lightgbm"]), process.output
    assert activations(cluster)[-1].step == "rollback"
    # Another process reads on `control` what this one did, and waits.
    service = start(cluster.settings, "-m", "pipeline.cli", "retrain", *OPTIONS)
    service.until_it_says("nothing to do: a version was rolled back")
    assert service.stop() == 0, service.output
    worker.until_it_says(f"lightgbm version {found['lightgbm']} is active (was {loud.version})")

    # A new recipe, by two people; the routine had no need of them.
    few = treeless_model(0.05)
    names = [FeatureDistribution(name=name, edges=(), counts=(1.0, 0.0)) for name in ("amount", "hour")]
    weak = LightGBMModel(few._text, few.calibration, {"training": {"trees": 40}}, distributions=tuple(names))
    weak_policy = Policy(0.5, lightgbm_version=weak.version, metadata={"alerts_per_day": BUDGET})
    contents = [("lightgbm", weak.version, weak.to_payload()), ("policy", weak_policy.version, weak_policy.payload)]
    publish_active(cluster.bootstrap, cluster.settings, [VersionToPublish(*content) for content in contents])
    propose = ("propose", "--compare-days", "5", "--fold-days", "5", "--by", "mona")
    assert "change something in it" in models(*propose, code=1)
    assert "hardly better than chance" in models(*propose, "--features", "weekday", code=1)
    reported = models(*propose, "--features", "+card_*,+merchant_*")
    version = reported.split()[1].rstrip(":")
    command, _ = shown("docs/models.md", "$ fraud-pipeline models propose")
    compare(command._replace(shown=command.shown.replace("28 days", "5 days")), reported, figures=True)
    proposal = [
        msgspec.json.decode(record.value or b"") for record in cluster.read(CONTROL) if record.key == b"assessment"
    ]
    assert [row["outcome"] for row in proposal[-4:]] == ["declared", "failed", "declared", "accepted"]
    assert "was never active" in models("promote", version, "--by", "mona", code=1)
    assert "somebody else has to approve it" in models("approve", version, "--by", "Mona", code=1)
    assert version in models("approve", version, "--by", "dana")
    worker.until_it_says(f"lightgbm version {version} is active (was {weak.version})")
    approved = activations(cluster)[-1]
    assert (approved.step, approved.by, approved.figures["proposed_by"]) == ("promote", "dana", "mona")
    assert "was active already" in models("approve", version, "--by", "dana", code=1)
    assert worker.stop() == 0, worker.output


def served(cluster: Cluster, first: int) -> set[str]:
    """Return the LightGBM versions that served transactions from a number on."""
    return {decision.versions.lightgbm for decision in cluster.decisions() if int(decision.transaction_id[1:]) >= first}
