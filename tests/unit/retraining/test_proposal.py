"""Proposals of recipes: what is compared, and how often."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeline.models.changes import ChangeAuthor
from pipeline.models.recipes import RECIPE, recipe_of_facts
from pipeline.models.version_history import VersionHistory
from pipeline.retraining.challenger import Champion, compared_days, recipe_of, trained_by
from pipeline.retraining.cluster_reader import ClusterLog
from pipeline.retraining.proposal import DECLARED, FAILED, ComparisonPeriod, compare_recipes, period_of_look, propose
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.messages import Assessment
from schemas.times import US_PER_DAY
from tests.unit.models.test_model_changes import Cluster
from tests.unit.retraining.test_retraining import HISTORY, LIMITS, NOW_US, OPTIONS, START_US, at, champion, served_by


def assessed(outcome: str, recipe: str, start_us: int, end_us: int) -> Assessment:
    figures = {RECIPE: recipe, "compared_from_us": start_us, "compared_to_us": end_us}
    return Assessment(versions=[], outcome=outcome, by="mona", reason="", figures=figures, assessed_at=at(1))


def test_a_recipe_gets_one_look_at_each_day() -> None:
    now = ComparisonPeriod(10 * US_PER_DAY, 38 * US_PER_DAY)
    assert period_of_look(VersionHistory(), "r", now) == now
    others = VersionHistory([assessed("rejected", "other", *now), assessed("rejected", "r", 0, 10 * US_PER_DAY)])
    assert period_of_look(others, "r", now) == now
    seen = VersionHistory([assessed(DECLARED, "r", *now), assessed("rejected", "r", *now)])
    with pytest.raises(ModelError, match="was rejected on days that would be looked at again: wait for 25 more days"):
        period_of_look(seen, "r", ComparisonPeriod(13 * US_PER_DAY, 41 * US_PER_DAY))
    failed = VersionHistory([assessed(DECLARED, "r", *now), assessed(FAILED, "r", *now)])
    assert period_of_look(failed, "r", ComparisonPeriod(13 * US_PER_DAY, 41 * US_PER_DAY)) == (
        13 * US_PER_DAY,
        41 * US_PER_DAY,
    )
    # A look that was declared is taken as it was declared, whenever that is.
    declared = VersionHistory([assessed(DECLARED, "r", *now)])
    assert period_of_look(declared, "r", ComparisonPeriod(13 * US_PER_DAY, 41 * US_PER_DAY)) == now


def test_recipes_are_told_apart_by_what_versions_keep_of_them() -> None:
    rows = HISTORY.served(champion().model)
    active = recipe_of(champion().model)
    other = active._replace(early_reports=False, maturity_days=9.0)
    assert len({version.digest for version in (active, other, active._replace(features=("amount", "hour")))}) == 3
    seeded = active._replace(config=msgspec.structs.replace(active.config, seed=5, threads=2))
    assert seeded.digest == active.digest
    model = trained_by(other, rows, NOW_US, champion(), OPTIONS._replace(maturity_days=None)).model
    assert recipe_of(model).digest == other.digest
    assert model.metadata["labels"]["maturity_days"] == 9.0
    facts = {
        "hyperparameters": model.metadata["training"],
        "features": model.trained_on,
        "label_handling": model.metadata["label_handling"],
    }
    assert recipe_of_facts(facts) == other.digest
    # Versions of earlier releases do not name what those did not know.
    of_before = msgspec.structs.replace(active.config, half_life_days=0.0)
    named = {name: value for name, value in msgspec.to_builtins(of_before).items() if name != "half_life_days"}
    assert recipe_of_facts(facts | {"hyperparameters": named}) == other._replace(config=of_before).digest


def test_a_recipe_that_knows_more_is_accepted_and_one_that_knows_less_is_not() -> None:
    rows = HISTORY.served(champion().model)
    period = ComparisonPeriod(*compared_days(rows, OPTIONS))
    active = recipe_of(champion().model)
    poor = active._replace(features=("amount", "hour"))
    found = compare_recipes(rows, champion(), poor, period, LIMITS, OPTIONS, fold_days=5)
    assert not found.judgement.accepted
    assert "not proven to find more frauds" in found.judgement.reason
    assert found.judgement.figures["compared_days"] == OPTIONS.compare_days
    # The last fold's version knew nothing of its fold.
    assert found.trained.model.metadata["as_of_us"] == period.start_us + 5 * US_PER_DAY

    weak = trained_by(poor, rows, period.start_us, champion(), OPTIONS)
    better = compare_recipes(rows, Champion(weak.model, champion().policy), active, period, LIMITS, OPTIONS, 5)
    assert better.judgement.accepted, better.judgement.reason
    assert better.judgement.figures["frauds_a_day_more_low"] > 0
    assert better.trained.model.metadata["as_of_us"] == NOW_US
    assert better.policy.lightgbm_version == better.trained.model.version


def test_labels_of_after_an_origin_do_not_enter_its_trainings() -> None:
    rows = HISTORY.served(champion().model)
    start_us, _ = compared_days(rows, OPTIONS)
    known = rows.training_set(start_us)
    assert known.fraud.sum() == np.count_nonzero(rows.reported_us <= start_us) < (rows.reported_us <= NOW_US).sum()


class Topics(ClusterLog):
    """Served rows, and `control` of a cluster in memory."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__("127.0.0.1:1", Settings(), 120.0)
        self._cluster = cluster
        self.served = served_by((champion().model, START_US))
        self.read_control()

    def read_control(self) -> None:
        self.published = self._cluster.published()


def test_a_proposal_is_declared_compared_and_recorded_once(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.publish(champion().model, champion().policy)
    topics, mona = Topics(cluster), ChangeAuthor("mona", "It is simpler.")
    poor = recipe_of(champion().model)._replace(features=("amount", "hour"))
    found = propose(topics, cluster, poor, mona, OPTIONS, second_approval=True, fold_days=5)
    assert found.outcome == "rejected"
    declared, rejected = cluster.items[-2:]
    assert [declared.outcome, rejected.outcome] == [DECLARED, "rejected"]
    assert declared.figures["compared_to_us"] == rejected.figures["compared_to_us"]
    assert rejected.by == "mona"
    assert rejected.versions[0].version == found.lightgbm
    topics.read_control()
    with pytest.raises(ModelError, match="looked at again"):
        propose(topics, cluster, poor, mona, OPTIONS, second_approval=True)
    with pytest.raises(ModelError, match="this is the recipe of the active version"):
        propose(topics, cluster, recipe_of(champion().model), mona, OPTIONS, second_approval=True)
