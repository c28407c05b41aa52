"""The alert budget service on a real broker: it reads the topics, and activates policies."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.decision.pacing import Pacing, PacingOptions
from pipeline.decision.policy import Policy
from pipeline.engine.records.accepted_labels import LabelOptions, accept
from pipeline.kafka.session.quarantine import decode_control
from pipeline.models.decision_feed import PartitionDecisions, decode_decided
from pipeline.models.publish import ControlWriter
from schemas.messages import Activation, LearningSwitch, ModelScores, Versions
from schemas.records import Record
from schemas.topics import ACCEPTED_LABELS, CONTROL, DECISIONS, LABELS, MODELS
from tests.helpers.champion import policy, publish_champion
from tests.helpers.logs import after, decision, label, microseconds
from tests.helpers.models import small_model
from tests.helpers.topics import Cluster, Starter
from tests.unit.engine.test_engine_models import other_model

pytestmark = pytest.mark.broker

BUDGET = 20.0
A_DAY = 240
PACE = ("-m", "pipeline.cli", "pace", "--budget-per-day", "20")


def decisions(cluster: Cluster, numbers: Sequence[int], lightgbm: str, **changes: Any) -> list[tuple[int, bytes]]:
    """Write a decision every six minutes, each with its partition; the two models rank differently."""
    written = []
    for number in numbers:
        score, river, logit = np.random.default_rng(number).random(3)
        value = decision(
            number,
            after(days=number / A_DAY),
            score=float(score),
            action="alert" if score > 0.9 else "allow",
            model_scores=ModelScores(lightgbm=0.5, river=float(river)),
            logit=float(logit),
            versions=Versions(lightgbm=lightgbm, river="r@0", policy="p", kernel="k", rates="1"),
            card_id=f"c{number % 100}",
            case_id=f"c{number % 100}-{number // A_DAY}",
            **changes,
        )
        cluster.write(DECISIONS, value, b"card", after(days=number / A_DAY), partition=number % 3)
        written.append((number % 3, value))
    cluster.flush()
    return written


def report(cluster: Cluster, numbers: Sequence[int], at: datetime) -> None:
    source = cluster.settings.topic(LABELS.name)
    for number in numbers:
        reported = label(number, at, card_id=f"c{number % 100}")
        record = Record(source, 0, number, microseconds(at) // 1_000, b"card", reported)
        (output,) = accept([record], LabelOptions(300_000_000, 3, topic_prefix=cluster.settings.topic_prefix)).outputs
        cluster.write(ACCEPTED_LABELS, output.value, output.key, at, output.headers or (), partition=0)
    cluster.flush()


def activations(cluster: Cluster) -> list[Activation]:
    found = [decode_control(record.value or b"") for record in cluster.read(CONTROL)]
    return [item for item in found if isinstance(item, Activation) and item.step == "pace"]


def policies(cluster: Cluster) -> dict[str, Policy]:
    versions = [json.loads(record.value or b"{}") for record in cluster.read(MODELS)]
    found = [
        Policy.from_payload(msgspec.json.encode(version["payload"]))
        for version in versions
        if version["name"] == "policy"
    ]
    return {version.version: version for version in found}


def once(cluster: Cluster) -> dict[str, Any]:
    result = cluster.command("pace", "--budget-per-day", "20", "--once")
    if result.exit_code:
        return {"error": result.stderr.strip()}
    (line,) = result.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def expected(written: Sequence[tuple[int, bytes]], lightgbm: str, threshold: float) -> float:
    """What the controller says of the same decisions, partition by partition."""
    pacing = Pacing(PacingOptions(BUDGET))
    for number in range(3):
        rows = PartitionDecisions(
            number, [decode_decided(value) for partition, value in written if partition == number]
        )
        pacing.add(rows.scored(lightgbm), number)
    return pacing.decide(threshold).threshold


def test_thresholds_follow_the_budget_and_the_newest_of_two_paces_goes_on(cluster: Cluster, start: Starter) -> None:
    assert "fraud-pipeline train --publish" in once(cluster)["error"]
    version = small_model().version
    publish_champion(cluster.bootstrap, cluster.settings, small_model(), policy(0.6))
    assert "no decisions" in once(cluster)["error"]
    # Of another version: what it thought high means nothing.
    written = decisions(cluster, range(A_DAY), "another")
    written += decisions(cluster, range(A_DAY, 4 * A_DAY), version)
    # In LightGBM's highest scores of a day, and not in the online model's.
    losses = [number for number in range(A_DAY, 4 * A_DAY) if _ranks(number, 2) > 150 and _ranks(number, 1) < 90][:4]
    report(cluster, losses, after(days=3.5))

    look = once(cluster)
    assert look["threshold"] == expected(written, version, 0.6) != 0.6
    assert (look["w"], look["l"], look["blend"], look["would_publish"]) == (0, 4, 0.0, True)
    assert activations(cluster) == []

    first = start(cluster.settings, *PACE)
    first.until(lambda: len(activations(cluster)) == 1)
    (begun,) = activations(cluster)
    assert (begun.by, begun.figures["threshold"], begun.figures["blend"]) == ("pace", look["threshold"], 0.0)
    assert begun.figures["decisions"] == {"0": 320, "1": 320, "2": 320}
    assert "the online model is out, by 0 reported frauds to 4" in begun.reason
    active = policies(cluster)[begun.versions[0].version]
    assert (active.threshold, active.blend) == (look["threshold"], 0.0)
    assert active.lightgbm_version == version

    # An hour in which everything scores high moves the threshold; another pace takes over.
    written += decisions(cluster, range(4 * A_DAY, 4 * A_DAY + 11), version)
    second = start(cluster.settings, *PACE)
    second.until(lambda: len({activation.figures["pace"] for activation in activations(cluster)}) == 2)
    assert first.code() == 0
    assert "another pace" in first.output
    newest = activations(cluster)[-1]

    # While learning is stopped nothing is activated.
    writer = ControlWriter(cluster.bootstrap, cluster.settings)
    writer.control(LearningSwitch(frozen=True, by="test", reason="a test", switched_at=after()))
    held = len(activations(cluster))
    decisions(cluster, range(5 * A_DAY, 6 * A_DAY + 1), version)
    second.until_it_says("learning is stopped on control")
    assert len(activations(cluster)) == held
    writer.control(LearningSwitch(frozen=False, by="test", reason="a test", switched_at=after()))

    # Another version: its policy holds, until the scores that came with it, or its own, are a day's.
    hour = microseconds(after(days=6)) // 3_600_000_000
    recent = [[hour - at, 0.3 + at / 1_000] for at in range(1, 168)]
    other = policy(0.7, lightgbm_version=other_model().version, metadata={"recent_scores": recent})
    publish_champion(cluster.bootstrap, cluster.settings, other_model(), other)
    second.until_it_says(f"LightGBM {other_model().version} is active")
    decisions(cluster, range(6 * A_DAY + 10, 6 * A_DAY + 22), other_model().version)
    second.until(lambda: activations(cluster)[-1].figures["lightgbm"] == other_model().version)
    # The first of it: once its own scores have come, another one may follow.
    seeded = next(item for item in activations(cluster) if item.figures["lightgbm"] == other_model().version)
    assert seeded.figures["before"] == 0.7
    assert seeded.figures["cold"] is False
    assert 0.3 <= seeded.figures["threshold"] < 0.5
    assert second.stop() == 0
    assert newest.figures["pace"] == seeded.figures["pace"]


def _ranks(number: int, column: int) -> int:
    """How many of the day's decisions have a lower value: 1 is the online model's score, 2 LightGBM's log-odds."""
    day = range(number // A_DAY * A_DAY, (number // A_DAY + 1) * A_DAY)
    values = [np.random.default_rng(item).random(3)[column] for item in day]
    return int(sum(value < np.random.default_rng(number).random(3)[column] for value in values))
