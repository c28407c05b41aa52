"""What the history of `control` tells: where rollbacks lead, what was approved, which records name a version."""

from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.models.version_history import Bundle, VersionEvent, VersionHistory
from schemas.messages import Activation, Assessment, LearningSwitch, VersionReference

START = datetime(2026, 3, 1, tzinfo=UTC)


def reference(name: str, version: str) -> VersionReference:
    return VersionReference(name=name, version=version, digest=version * 32, offset=0)


def named(**versions: str) -> list[VersionReference]:
    return [reference(name, version) for name, version in versions.items()]


def made(hour: int, step: str = "publish", by: str = "train", **versions: str) -> Activation:
    at = START + timedelta(hours=hour)
    return Activation(versions=named(**versions), activated_at=at, step=step, by=by)


def switched(hour: int, frozen: bool) -> LearningSwitch:
    return LearningSwitch(frozen=frozen, by="dana", reason="r", switched_at=START + timedelta(hours=hour))


def assessed(hour: int, version: str, against: str, outcome: str = "rejected") -> Assessment:
    return Assessment(
        versions=named(lightgbm=version), against=named(lightgbm=against), outcome=outcome, by="retrain", reason="r",
        assessed_at=START + timedelta(hours=hour),
    )  # fmt: skip


def pair(bundle: Bundle | None) -> tuple[str, str] | None:
    return None if bundle is None else (bundle.lightgbm.version, bundle.policy.version)


def stack(*events: VersionEvent) -> list[Any]:
    return [pair(bundle) for bundle in VersionHistory(events).rollback_stack()]


A, B = made(0, lightgbm="a0", policy="a1"), made(1, "promote", "retrain", lightgbm="b0", policy="b1")
C = made(2, "promote", "dana", lightgbm="c0", policy="c1")


def test_a_rollback_goes_further_back_than_the_one_before_it() -> None:
    assert stack(A, B, C) == [("a0", "a1"), ("b0", "b1"), ("c0", "c1")]
    back = made(3, "rollback", lightgbm="b0", policy="b1")
    assert stack(A, B, C, back) == [("a0", "a1"), ("b0", "b1")]
    again = made(4, "rollback", lightgbm="a0", policy="a1")
    assert stack(A, B, C, back, again) == [("a0", "a1")]
    assert stack(A, B, C, back, again, C) == [("a0", "a1"), ("c0", "c1")]


def test_a_rollback_over_several_bundles_takes_all_of_them() -> None:
    assert stack(A, B, C, made(3, "rollback", lightgbm="a0", policy="a1")) == [("a0", "a1")]
    # With another threshold than it had.
    assert stack(A, B, C, made(3, "rollback", lightgbm="a0", policy="a9")) == [("a0", "a9")]
    # To what nobody has seen before.
    assert stack(A, B, made(3, "rollback", lightgbm="d0", policy="d1")) == [("a0", "a1"), ("d0", "d1")]


def test_a_paced_threshold_belongs_to_its_bundle() -> None:
    paced = made(2, "pace", "pace", policy="b2")
    assert stack(A, B, paced) == [("a0", "a1"), ("b0", "b2")]
    assert stack(A, B, paced, made(3, "policy", "dana", policy="b3"))[-2:] == [("b0", "b2"), ("b0", "b3")]


def test_approved_is_what_a_person_or_train_has_activated() -> None:
    assert VersionHistory().approved() is None
    assert pair(VersionHistory([A, B]).approved()) == ("a0", "a1")
    assert pair(VersionHistory([A, B, C]).approved()) == ("c0", "c1")
    # A person's policy on a version that a program has chosen.
    assert pair(VersionHistory([A, B, made(3, "policy", "dana", policy="b3")]).approved()) == ("a0", "a1")
    named = made(1, "promote", "fraud-pipeline retrain", lightgbm="b0", policy="b1")
    assert pair(VersionHistory([A, named]).approved()) == ("a0", "a1")
    # By its step, whatever the program calls itself.
    assert pair(VersionHistory([A, made(3, "pace", "controller", policy="a2")]).approved()) == ("a0", "a1")
    fallen = made(3, "fall-back", "dana", lightgbm="a0", policy="a7")
    assert pair(VersionHistory([A, B, fallen]).approved()) == ("a0", "a1")


def test_the_newest_switch_counts() -> None:
    assert not VersionHistory([A]).frozen
    assert VersionHistory([switched(0, True), A]).frozen
    assert not VersionHistory([switched(0, True), switched(1, False)]).frozen


def test_a_mention_is_of_the_newest_activation_else_of_the_newest_assessment() -> None:
    history = VersionHistory([A, assessed(1, "b0", "a0"), assessed(2, "a0", "c0", "kept"), made(3, rates="r0")])
    found = {mention.reference.version: mention for mention in history.mentions()}
    assert list(found) == ["b0", "a1", "a0"] or list(found) == ["b0", "a0", "a1"]
    assert isinstance(found["b0"].event, Assessment)
    assert found["a0"].event == A
    assert VersionHistory([A, B, C]).mentions()[0].reference.version[0] == "c"


def test_assessments_are_found_from_both_sides() -> None:
    history = VersionHistory([A, assessed(1, "b0", "a0"), assessed(2, "c0", "a0")])
    assert [challenger.versions[0].version for challenger in history.challengers_of("a0" * 32)] == ["b0", "c0"]
    assert [assessment.outcome for assessment in history.assessments_of("b0" * 32)] == ["rejected"]
    assert history.activations_of("a0" * 32) == [A]


def test_a_history_can_be_cut_at_a_time() -> None:
    history = VersionHistory([A, switched(1, True), C])
    assert history.until(START + timedelta(hours=1)).events == history.events[:2]
    assert history.until(START - timedelta(hours=1)).events == []
