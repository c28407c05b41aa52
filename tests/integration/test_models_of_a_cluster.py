"""The way of versions on a real broker, by commands, and a learn agent that heeds the switch."""

import json
import logging
import urllib.request
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.kafka.writers.producer import WriterFenced
from pipeline.models.changes import ChangeAuthor, VersionChanges
from pipeline.models.library import PublishedVersions
from pipeline.models.publish import ControlWriter, ServiceEnded, VersionToPublish, publish_active
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.retraining.challenger import Challenge, Champion, Comparison
from pipeline.retraining.gate import GateLimits, Judgement
from pipeline.retraining.service import Retrainer, ServiceOptions
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.simulation.simulator import Scenario, make_profiles, simulate_days
from pipeline.training.fit import Trained
from schemas.messages import VersionReference
from schemas.topics import CONTROL, EXAMPLES
from tests.helpers.champion import policy
from tests.helpers.logs import after
from tests.helpers.models import example, small_model
from tests.helpers.topics import Cluster, Starter
from tests.helpers.waiting import TIMEOUT_S
from tests.helpers.worker import Worker
from tests.unit.engine.test_engine_models import other_model

pytestmark = pytest.mark.broker

MODEL, OTHER = small_model(), other_model()
FIRST, SECOND = policy(), policy(0.5, lightgbm_version=OTHER.version)


@pytest.fixture
def models(cluster: Cluster) -> Callable[..., str]:
    """Runs a subcommand of ``fraud-pipeline models`` on the cluster."""

    def run(*arguments: str, reason: str | None = None, code: int = 0) -> str:
        why = ("--reason", reason, "--by", "dana") if reason is not None else ()
        return cluster.command("models", *arguments, *why, code=code).output

    return run


def address_of(worker: Worker) -> str:
    """Where the worker serves metrics; waits until it does."""
    worker.until_it_says(", metrics on ")
    return next(line.split()[-1] for line in worker.output.splitlines() if ", metrics on " in line)


def metric(address: str, name: str, **labels: str) -> float | None:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_S) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = [sample for family in families for sample in family.samples]
    name = f"fraud_pipeline_{name}"
    return next(
        (sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()), None
    )


def test_a_trained_version_takes_over_blend_and_audit_from_the_cluster(
    cluster: Cluster, models: Callable[..., str], tmp_path: Path
) -> None:
    cluster.settings = cluster.settings.model_copy(update={"audit_keys": {"k1": "secret"}})
    registry = Registry(cluster.settings.registry_path)
    registry.activate(POLICY, registry.register(POLICY, policy(0.9, blend=0.75).to_payload()))
    cluster.publish(FIRST)
    changed = ("--blend", "0.25", "--audit-rate", "0.01", "--audit-key-id", "k1")
    models("policy", "set", *changed, reason="Cards are tested.")
    file = tmp_path / "history.parquet"
    history = simulate_days(make_profiles(np.random.default_rng(4), 70, 140, Scenario()), 4, 0, 24)
    history[history["amount_minor"] > 0].to_parquet(file, index=False)
    quick = (
        "--trees",
        "5",
        "--force",
        "--label-delay-days",
        "1",
        "--validation-days",
        "4",
        "--features",
        "amount,hour",
    )
    trained = cluster.command("train", str(file), *quick, "--publish", code=0)
    shown = json.loads(models("policy", "show", "--json"))
    assert shown["version"] == json.loads(trained.stdout)["policy"]
    assert shown["lightgbm_version"] == json.loads(trained.stdout)["lightgbm"]
    assert (shown["blend"], shown["audit"]["rate"]) == (0.25, 0.01)


def test_who_has_read_before_somebody_else_wrote_writes_nothing(
    cluster: Cluster, models: Callable[..., str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or a line that another client has caused hides ours.
    monkeypatch.setattr("pipeline.kafka.cluster.client_log.REPEAT_S", 0.0)
    cluster.publish(FIRST)
    (writer := ControlWriter(cluster.bootstrap, cluster.settings)).fence()
    late = VersionChanges.on(cluster.bootstrap, cluster.settings, writer)
    models("policy", "set", "--threshold", "0.3", reason="Too few alerts.")
    with pytest.raises(WriterFenced, match=r"control at the same time, and nothing of this was written: run it again$"):
        late.set_policy({"blend": 0.5}, ChangeAuthor("dana", "Too late."))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    shown = json.loads(models("policy", "show", "--json"))
    assert (shown["threshold"], shown["blend"]) == (0.3, 1.0)


@pytest.fixture
def somebody_else(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> list[ChangeAuthor]:
    """Somebody who sets another threshold whenever a cluster was read, once for each that is in the list."""
    left, read, percent = list[ChangeAuthor](), PublishedVersions.on, count(31)

    def interrupted(*given: Any) -> PublishedVersions:
        found = read(*given)
        if left:
            (writer := ControlWriter(cluster.bootstrap, cluster.settings)).fence()
            published = read(cluster.bootstrap, cluster.settings)
            changes = VersionChanges(published, Registry(cluster.settings.registry_path), writer, cluster.settings)
            changes.set_policy({"threshold": next(percent) / 100}, left.pop())
        return found

    monkeypatch.setattr(PublishedVersions, "on", interrupted)
    return left


def test_a_command_decides_again_where_somebody_else_has_written_meanwhile(
    cluster: Cluster, models: Callable[..., str], somebody_else: list[ChangeAuthor], tmp_path: Path
) -> None:
    cluster.publish(FIRST)
    (tmp_path / "large.sql").write_text("-- code: large\n-- owner: d\n-- reason: Large.\namount > 900\n")
    why = ("--by", "dana", "--reason", "A test.")
    block = ("--kind", "block", "--field", "card_id")
    for command in (
        ("models", "policy", "set", "--blend", "0.5"),
        ("models", "freeze"),
        ("models", "unfreeze"),
        ("rules", "apply", str(tmp_path), "--yes"),
        ("rules", "publish", "large"),
        ("rules", "activate", "large", "--untested"),
        ("rules", "retire", "large"),
        ("lists", "add", "stolen", "c1", "c2", *block),
        ("lists", "remove", "stolen", "c2"),
    ):
        somebody_else.append(ChangeAuthor("pace", "A budget."))
        output = cluster.command(*command, *why, code=0).output
        assert not somebody_else, command
        assert output.count("large: new, a draft") == (command[1] == "apply"), "what was shown is not shown again"
        assert json.loads(models("history", "--limit", "1", "--json"))["by"] == "dana", command
    somebody_else.append(ChangeAuthor("pace", "A budget."))
    models("policy", "set", "--threshold", "0.9", reason="By hand.")
    assert (shown := json.loads(models("policy", "show", "--json")))["threshold"] == 0.9
    assert shown["blend"] == 0.5
    somebody_else.append(ChangeAuthor("pace", "A budget."))
    refused = models("rollback", reason="Back.", code=1)
    assert refused.startswith("Error: somebody else has changed the active versions meanwhile to "), "or it goes twice"
    assert f"with policy {shown['version']}." in models("rollback", reason="Back.", code=0)


def test_a_command_beside_one_that_writes_all_the_time_says_so_in_a_sentence(
    cluster: Cluster, models: Callable[..., str], somebody_else: list[ChangeAuthor]
) -> None:
    cluster.publish(FIRST)
    models("policy", "set", "--blend", "0.5", reason="A test.")
    somebody_else += [ChangeAuthor("pace", "A budget.")] * 20
    control = cluster.settings.topic(CONTROL.name)
    why = "at the same time, and nothing of this was written: run it again"
    given = ("policy", "set", "--blend", "0.7")
    assert models(*given, reason="Less.", code=1) == f"Error: somebody else wrote to topic {control} {why}\n"
    assert len(somebody_else) == 10


def test_a_rollback_by_a_person_between_reading_and_writing_of_a_renewal_holds(
    cluster: Cluster, models: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.publish(FIRST)
    contents = [("lightgbm", OTHER.version, OTHER.to_payload()), ("policy", SECOND.version, SECOND.payload)]
    publish_active(cluster.bootstrap, cluster.settings, [VersionToPublish(*content) for content in contents])
    service = Retrainer(cluster.bootstrap, cluster.settings, ServiceOptions())
    service._topics.read()
    champion = service._topics.champion()
    assert champion is not None
    assert champion.model.version == OTHER.version
    third = LightGBMModel(OTHER._text, msgspec.structs.replace(OTHER.calibration, intercept=1.5))
    made = SECOND.replace(lightgbm_version=third.version)
    found = Challenge(Judgement(True, "it finds more", {}), Trained(third, made, {}), made)
    # Training and comparing take hours where this takes none.
    monkeypatch.setattr("pipeline.retraining.service.challenge", lambda *_: found)
    monkeypatch.setattr("pipeline.retraining.service.compared_days", lambda *_: (0, 1))
    monkeypatch.setattr(service._topics.served, "rows", list)
    written = service._writer.contents

    def interrupted(versions: Sequence[VersionToPublish]) -> list[VersionReference]:
        if json.loads(models("policy", "show", "--json"))["version"] == SECOND.version:
            models("rollback", reason="It finds less.")
        return written(versions)

    monkeypatch.setattr(service._writer, "contents", interrupted)
    assert service._cycle(champion, service._topics.tenures(champion), 0).outcome == "kept"
    assert json.loads(models("policy", "show", "--json"))["version"] == FIRST.version


def test_of_two_renewing_processes_the_one_that_wrote_last_goes_on(cluster: Cluster) -> None:
    cluster.publish(FIRST)
    first, second = (Retrainer(cluster.bootstrap, cluster.settings, ServiceOptions()) for _ in range(2))
    second._sole._identity = "another-1"
    assert {first.look().outcome, second.look().outcome} == {"nothing"}
    cycle = Comparison(Champion(MODEL, FIRST), cast(Any, []), GateLimits(1.0), [], second._sole.figures)
    second._undisturbed(lambda: second._assessed("rejected", "it finds less", [], cycle))
    assert second.look().outcome == "nothing"
    with pytest.raises(ServiceEnded, match="another retrain \\(another-1\\) has written since: this one ends"):
        first.look()


def test_versions_are_changed_and_learning_is_frozen(
    cluster: Cluster, start: Starter, models: Callable[..., str]
) -> None:
    registry = Registry(cluster.settings.registry_path)
    registry.register(LIGHTGBM, OTHER.to_payload())
    registry.register(POLICY, SECOND.to_payload())
    assert "no version is active" in models("rollback", reason="None is there.", code=1)
    assert "scores alone" in models("cold-start", "--audit-rate", "0.01", reason="There are no labels yet.")
    rows = [json.loads(line) for line in models("list", "--json").splitlines()]
    assert [(row["active"], row["step"]) for row in rows] == [(True, "cold-start")] * 2
    assert "active on this cluster already" in models("cold-start", reason="Once more.", code=1)
    cluster.publish(FIRST)

    def active() -> set[str]:
        rows = [json.loads(line) for line in models("list", "--json").splitlines()]
        return {row["version"] for row in rows if row["active"]}

    before = datetime.fromisoformat(json.loads(models("history", "--limit", "1", "--json"))["activated_at"])
    assert active() == {MODEL.version, FIRST.version}
    assert OTHER.version in models("promote", OTHER.version, reason="It finds more.")
    assert active() == {OTHER.version, SECOND.version}
    assert MODEL.version in models("rollback", reason="It does not.")
    assert active() == {MODEL.version, FIRST.version}
    newest, *_ = map(json.loads, models("history", "--json").splitlines())
    assert (newest["step"], newest["by"], newest["reason"]) == ("rollback", "dana", "It does not.")
    reported = json.loads(models("at", (before + timedelta(microseconds=1)).isoformat(), "--json"))
    assert (reported["lightgbm"], reported["policy"], reported["frozen"]) == (MODEL.version, FIRST.version, False)
    assert "no version was active" in models("at", "2020-01-01", code=1)

    models("freeze", "--fall-back", reason="A source is wrong.")
    assert json.loads(models("policy", "show", "--json"))["blend"] == 0.0
    worker = start(cluster.settings, agents="learn")

    def teach(numbers: range) -> None:
        for number in numbers:
            cluster.write(EXAMPLES, msgspec.json.encode(example(number)), b"c", after(minutes=number))
        cluster.flush()

    def learned(count: int) -> bool:
        return any(version.endswith(f"@{count}") for version in cluster.versions("river"))

    teach(range(3))
    # It holds the partition and counts what waits, which a reader would have read by then.
    worker.until_it_says("learning is frozen by dana: A source is wrong.")
    address = address_of(worker)
    worker.until(lambda: metric(address, "lag_records") == 3)
    assert metric(address, "learning_frozen") == 1
    with urllib.request.urlopen(f"http://{address}/readyz", timeout=TIMEOUT_S) as response:
        assert response.status == 200
    assert cluster.versions("river") == []
    models("unfreeze", reason="It is mended.")
    worker.until(lambda: learned(3))
    assert metric(address, "learning_frozen") == 0
    # And again, while it reads.
    models("freeze", reason="Once more.")
    worker.until_it_says("learning is frozen by dana: Once more.")
    teach(range(3, 5))
    worker.until(lambda: metric(address, "lag_records") == 2)
    models("unfreeze", reason="It is mended.")
    worker.until(lambda: learned(5))
    # A surge: passed over until somebody releases it, and then learned once.
    for number in range(5, 9):
        surge = example(number, held=True, label_source="customer")
        cluster.write(EXAMPLES, msgspec.json.encode(surge), b"c", after(minutes=number))
    # One of them was corrected since, so that what was held of it is no longer believed.
    corrected = example(8, label="legitimate", label_source="analyst", revision=1)
    cluster.write(EXAMPLES, msgspec.json.encode(corrected), b"c", after(minutes=9))
    cluster.flush()
    worker.until(lambda: learned(10))
    # Counted behind the transaction in which it is published.
    worker.until(lambda: metric(address, "training_updates_total", outcome="held") == 4)
    assert json.loads(models("held", "--json")) == {"customer": 3}
    assert "held are: customer (3)" in models("release", "issuer", reason="Wrong source.", code=1)
    assert "3 labels of customer" in models("release", "customer", reason="A backlog.")
    worker.until(lambda: metric(address, "training_updates_total", outcome="learned") == 9)
    assert models("held") == "No label is held.\n"
    records = [json.loads(record.value or b"") for record in cluster.read(CONTROL)]
    (record,) = [record for record in records if record["kind"] == "release"]
    assert (record["source"], record["examples"], record["by"]) == ("customer", 3, "dana")
    assert (record["position"]["offset"], record["position"]["end"]) == (5, 8)
    assert worker.stop() == 0
