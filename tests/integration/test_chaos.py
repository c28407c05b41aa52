"""The short form of ``make chaos``, the checker on damaged logs, and bugs that are seeded on purpose."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.broker import EmbeddedBroker, embedded_broker
from tests.chaos.brokers import Brokers
from tests.chaos.checker import CHECKS, check_all, differences
from tests.chaos.harness import Chaos, Options, Outcome
from tests.chaos.load import Load
from tests.chaos.records import Entry
from tests.chaos.report import as_json, as_text, failures
from tests.chaos.run import Check
from tests.chaos.schedule import short_schedule

pytestmark = [pytest.mark.broker, pytest.mark.timeout(1200)]

SEED = 11
SECONDS = 32.0
BUGS = {
    "commit-before-produce": ("one decision a profiled transaction", "was profiled and not decided"),
    "batch-twice": ("one decision a profiled transaction", "was decided again"),
    "forgotten-rollback": ("features equal the reference", "the reference has"),
    "features-of-another": ("card features travel unchanged", "the models saw other card features"),
}

Change = Callable[[list[Entry]], list[Entry]]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A short run on a broker of its own, which is killed in it."""
    directory = tmp_path_factory.mktemp("chaos")
    load = Load(SEED, 1_600, 6.0, 2, horizon_days=2.5)
    options = Options(load, SECONDS, short_schedule(SEED, SECONDS), maturity_days=1.5, work_off_s=300.0)
    with embedded_broker(directory / "kafka") as broker, Chaos(Brokers(broker), directory, options, print) as chaos:
        return chaos.run()


def test_nothing_is_lost_doubled_or_changed(outcome: Outcome) -> None:
    result = as_json(outcome, {"seed": SEED})
    text = as_text(result)
    assert differences(outcome.checks) == 0, text
    assert failures(outcome) == [], text
    # On a busy machine a broker's start takes so long that the load ends before the last fault.
    assert {"garbage, kill", "pause", "broker kill", "bomb"} <= result["faults"].keys()
    assert all(len(line) <= 80 for line in text.splitlines())
    compared = {name: count for check in outcome.checks for name, count in check.compared.items()}
    for what in (
        "accepted_again",
        "too_late",
        "labels_too_late",
        "presumed",
        "corrections",
        "not_sampled",
        "quarantines",
    ):
        assert compared[what] > 0, f"nothing was compared of {what}"
    assert outcome.evidence.from_snapshot + outcome.evidence.from_log > 0
    assert outcome.evidence.failed_unasked == []


def dropped(which: Callable[[Any], bool]) -> Change:
    """Without the last record that fits."""

    def change(entries: list[Entry]) -> list[Entry]:
        index = _last(entries, which)
        return entries[:index] + entries[index + 1 :]

    return change


def emptied(entries: list[Entry]) -> list[Entry]:
    """Without any record."""
    del entries
    return []


def doubled(which: Callable[[Any], bool]) -> Change:
    """The last record that fits stands a second time at the end of its partition."""

    def change(entries: list[Entry]) -> list[Entry]:
        record = entries[_last(entries, which)]
        end = max(entry.offset for entry in entries if entry.partition == record.partition) + 2
        return sorted([*entries, record._replace(offset=end)], key=lambda entry: (entry.partition, entry.offset))

    return change


def edited(which: Callable[[Any], bool], edit: Callable[[Any], None]) -> Change:
    """The last record that fits says something else."""

    def change(entries: list[Entry]) -> list[Entry]:
        index = _last(entries, which)
        message = json.loads(entries[index].value or b"")
        edit(message)
        value = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
        return [*entries[:index], entries[index]._replace(value=value), *entries[index + 1 :]]

    return change


def _last(entries: list[Entry], which: Callable[[Any], bool]) -> int:
    return max(i for i, entry in enumerate(entries) if not entry.hostile and which(json.loads(entry.value or b"null")))


def is_any(_: Any) -> bool:
    return True


def is_selected(row: Any) -> bool:
    return row["selection"] is not None


def is_transaction(row: Any) -> bool:
    return bool(row["kind"] == "transaction")


def is_label(row: Any) -> bool:
    return bool(row["kind"] == "label")


def is_river(item: Any) -> bool:
    return bool(item.get("name") == "river")


def is_example(row: Any) -> bool:
    return bool(row["revision"] == 0 and row["label"] == "fraud" and not row["held"])


def is_trained(row: Any) -> bool:
    """True for a reported fraud that River learns; a late one has weight 0, since others' weights stand for it."""
    weight = row["weight"] if row.get("online_weight") is None else row["online_weight"]
    return is_example(row) and bool(weight > 0)


def is_correction(row: Any) -> bool:
    return bool(row["revision"] == 1)


def is_presumed(row: Any) -> bool:
    return bool(row["label"] == "presumed_legitimate")


def add(name: str, amount: float) -> Callable[[Any], None]:
    """Raise the number under a dotted name."""

    def edit(message: Any) -> None:
        *path, last = name.split(".")
        for part in path:
            message = message[part]
        position: Any = int(last) if last.isdigit() else last
        message[position] += amount

    return edit


def put(name: str, value: object) -> Callable[[Any], None]:
    return lambda message: message.update({name: value})


def without(name: str) -> Callable[[Any], None]:
    return lambda message: message.pop(name)


def moved(entries: list[Entry]) -> list[Entry]:
    """The last record stands in the other partition."""
    return [*entries[:-1], entries[-1]._replace(partition=1 - entries[-1].partition)]


@pytest.mark.parametrize(
    ("topic", "change", "found_by", "saying"),
    [
        ("decisions", dropped(is_any), "decisions_are_one_to_one", "was profiled and not decided"),
        ("decisions", doubled(is_any), "decisions_are_one_to_one", "has 2 decisions"),
        ("decisions", edited(is_any, add("case_sequence", 1)), "decisions_are_one_to_one", "case"),
        (
            "features",
            edited(is_any, add("features.merchant_sum_30d", 0.01)),
            "features_equal_the_reference",
            "merchant_sum_30d",
        ),
        (
            "features",
            edited(is_any, add("features.card_count_30d", 1)),
            "card_features_travel_unchanged",
            "other card features",
        ),
        ("features", edited(is_any, add("features.amount", 1e4)), "scores_are_reproduced", "log-odds"),
        ("features", dropped(is_any), "scores_are_reproduced", "no row of features"),
        ("features", dropped(is_any), "features_equal_the_reference", "no row of features"),
        ("features", dropped(is_any), "features_stand_beside_decisions", "1 decisions, and 0 rows"),
        ("features", doubled(is_any), "features_stand_beside_decisions", "1 decisions, and 2 rows"),
        ("features", edited(is_any, add("source.offset", 10**6)), "features_stand_beside_decisions", "0 decisions"),
        ("features", edited(is_any, add("score", 1e-12)), "features_stand_beside_decisions", "score of the row"),
        ("features", edited(is_any, add("log.row", 1)), "features_stand_beside_decisions", "log of the row"),
        ("features", edited(is_any, put("versions", {})), "features_stand_beside_decisions", "versions of the row"),
        ("features", moved, "features_stand_beside_decisions", "partition of"),
        ("features", emptied, "examples_are_consistent", "not decided"),
        ("decisions", dropped(is_any), "features_stand_beside_decisions", "0 decisions, and 1 rows"),
        (
            "decisions",
            edited(is_selected, add("features.amount", 1e-9)),
            "features_stand_beside_decisions",
            "features of the decision",
        ),
        ("decisions", edited(is_selected, without("features")), "features_stand_beside_decisions", "bears features"),
        (
            "decisions",
            edited(lambda item: not is_selected(item), put("features", {})),
            "features_stand_beside_decisions",
            "bears features",
        ),
        ("decisions", edited(is_any, add("score", 1e-6)), "scores_are_reproduced", "score"),
        ("decisions", edited(is_any, add("model_scores.river", 1e-6)), "scores_are_reproduced", "score of River"),
        ("decisions", edited(is_any, add("logit", 1e-6)), "scores_are_reproduced", "log-odds of LightGBM"),
        ("decisions", edited(is_any, add("river_logit", 1e-6)), "scores_are_reproduced", "log-odds of River"),
        (
            "decisions",
            edited(lambda row: row["action"] == "allow", put("action", "alert")),
            "alerts_are_one_to_one",
            "has none",
        ),
        ("alerts", dropped(is_any), "alerts_are_one_to_one", "has none"),
        ("alerts", doubled(is_any), "alerts_are_one_to_one", "too many"),
        ("alerts", edited(is_any, add("severity", 1)), "alerts_are_one_to_one", "severity"),
        ("profiled", dropped(is_transaction), "transactions_are_profiled_once", "has 0 profiled records"),
        ("profiled", doubled(is_transaction), "transactions_are_profiled_once", "has 2 profiled records"),
        ("profiled", dropped(is_label), "labels_are_passed_on", "labels in profiled"),
        ("profiled", doubled(is_label), "labels_are_passed_on", "labels in profiled"),
        ("profiled", edited(is_label, add("known_at_us", 1)), "labels_are_passed_on", "labels in profiled"),
        ("examples", dropped(is_example), "examples_are_consistent", "lacks 1 examples"),
        ("examples", dropped(is_correction), "examples_are_consistent", "lacks 1 examples"),
        ("examples", dropped(is_presumed), "examples_are_consistent", "lacks 1 examples"),
        ("examples", doubled(is_example), "examples_are_consistent", "examples instead of"),
        ("examples", doubled(is_presumed), "examples_are_consistent", "examples instead of"),
        ("examples", edited(is_correction, put("revision", 7)), "examples_are_consistent", "revision"),
        ("examples", edited(is_example, put("label_source", "nobody")), "examples_are_consistent", "source"),
        ("examples", edited(is_any, put("weight", 7.0)), "examples_are_consistent", "weight"),
        ("examples", edited(is_any, add("logit", 1e-6)), "examples_are_consistent", "logit"),
        ("examples", edited(is_any, add("river_logit", 1e-6)), "examples_are_consistent", "river_logit"),
        ("examples", dropped(is_trained), "weights_are_a_fresh_replay", "weight"),
        ("examples", edited(is_trained, put("label", "legitimate")), "weights_are_a_fresh_replay", "weight"),
        ("models", edited(is_river, add("payload.weights.0", 1e-7)), "weights_are_a_fresh_replay", "weight 0"),
        ("models", edited(is_river, add("payload.lessons.learned", 1)), "weights_are_a_fresh_replay", "updates"),
        ("dead-letters", lambda entries: entries[1:], "dead_letters_are_complete", "has no dead letter"),
        ("dead-letters", lambda entries: [*entries, entries[0]], "dead_letters_are_complete", "or had one"),
        (
            "dead-letters",
            lambda entries: [entries[0]._replace(value=b"?"), *entries[1:]],
            "dead_letters_are_complete",
            "value of the dead letter",
        ),
        ("transactions", lambda entries: entries[1:], "inputs_are_the_ledger", "is not in transactions"),
        ("transactions", lambda entries: [*entries, entries[0]], "inputs_are_the_ledger", "or before"),
    ],
)
def test_the_checker_names_what_is_wrong_with_damaged_logs(
    outcome: Outcome, topic: str, change: Change, found_by: str, saying: str
) -> None:
    (check,) = [check for check in CHECKS if check.__name__ == found_by]
    (found,) = check_all(outcome.logs.changed(topic, change), outcome.ledger, outcome.rules, [check])
    assert found.differences > 0
    assert any(saying in problem for problem in found.problems), found.problems


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (lambda entries: entries[1:], "was not forwarded to rerouted"),
        (lambda entries: [*entries, entries[0]], "or was before"),
    ],
)
def test_the_checker_follows_rerouted_records(outcome: Outcome, change: Change, saying: str) -> None:
    (check,) = [check for check in CHECKS if check.__name__ == "misplaced_are_rerouted"]
    (found,) = check_all(outcome.logs.changed("rerouted", change), outcome.ledger, outcome.rules, [check])
    assert any(saying in problem for problem in found.problems), found.problems


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (lambda entries: entries[1:], "was never read"),
        (lambda entries: [*entries, entries[-1]._replace(offset=entries[-1].offset + 2)], "read twice"),
    ],
)
def test_the_checker_follows_progress(outcome: Outcome, change: Change, saying: str) -> None:
    (check,) = [check for check in CHECKS if check.__name__ == "progress_covers_every_input"]
    (found,) = check_all(outcome.logs.changed("progress", change), outcome.ledger, outcome.rules, [check])
    assert any(saying in problem for problem in found.problems), found.problems


@pytest.mark.parametrize(
    ("topic", "which", "found_by", "saying"),
    [
        ("decisions", is_any, "decisions_are_one_to_one", "was profiled and not decided"),
        ("features", is_any, "features_stand_beside_decisions", "1 decisions, and 0 rows"),
        ("alerts", is_any, "alerts_are_one_to_one", "has none"),
        ("profiled", is_transaction, "transactions_are_profiled_once", "profiled records instead of"),
        ("profiled", is_label, "labels_are_passed_on", "labels in profiled end with"),
        ("examples", is_example, "examples_are_consistent", "lacks 1 examples"),
    ],
)
def test_at_least_once_allows_what_is_repeated_and_not_what_is_missing(
    outcome: Outcome, topic: str, which: Callable[[Any], bool], found_by: str, saying: str
) -> None:
    (check,) = [check for check in CHECKS if check.__name__ == found_by]
    rules = outcome.rules._replace(exactly_once=False)
    (repeated,) = check_all(outcome.logs.changed(topic, doubled(which)), outcome.ledger, rules, [check])
    assert (repeated.differences, repeated.problems) == (0, [])
    (missing,) = check_all(outcome.logs.changed(topic, dropped(which)), outcome.ledger, rules, [check])
    assert any(saying in problem for problem in missing.problems), missing.problems


def test_at_least_once_allows_no_wrong_value(outcome: Outcome) -> None:
    rules = outcome.rules._replace(exactly_once=False)
    assert differences(check_all(outcome.logs, outcome.ledger, rules)) == 0
    for topic, edit, found_by in (
        ("features", add("features.merchant_sum_30d", 0.01), "features_equal_the_reference"),
        ("features", add("score", 1e-6), "features_stand_beside_decisions"),
        ("decisions", add("score", 1e-6), "scores_are_reproduced"),
        ("decisions", add("case_sequence", 1), "decisions_are_one_to_one"),
    ):
        (check,) = [check for check in CHECKS if check.__name__ == found_by]
        changed = outcome.logs.changed(topic, edited(is_any, edit))
        (found,) = check_all(changed, outcome.ledger, rules, [check])
        assert found.differences > 0, found_by


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_that_is_seeded_on_purpose_is_found(bug: str, broker: EmbeddedBroker, tmp_path: Path) -> None:
    struck = tmp_path / "struck"
    options = Options(
        Load(SEED, 400, 3.0, 2, horizon_days=1.5),
        2.5,
        (),
        maturity_days=1.0,
        prefix=f"bug-{uuid.uuid4().hex[:8]}-",
        command=("-m", "tests.chaos.buggy_worker", bug, "worker"),
        environment={"CHAOS_BUG_FILE": str(struck), "FRAUD_PIPELINE_BATCH_MAX_RECORDS": "50"},
    )
    with Chaos(Brokers(broker), tmp_path, options, print) as chaos:
        checks = chaos.run().checks
    assert struck.exists(), "the bug did not strike; the worker's internals have other names now"
    name, saying = BUGS[bug]
    (found,) = [check for check in checks if check.name == name]
    assert any(saying in problem for problem in found.problems), problems_of(checks)


def problems_of(checks: list[Check]) -> str:
    return "\n".join(f"{check.name}: {check.differences} {check.problems}" for check in checks)
