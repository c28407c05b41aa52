"""The short form of ``make chaos``, and its checker on damaged logs."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.broker import embedded_broker
from tests.chaos.arithmetic import DAY_US
from tests.chaos.brokers import Brokers
from tests.chaos.checker import CHECKS, check_all, differences
from tests.chaos.harness import Chaos, Options, Outcome
from tests.chaos.load import Load
from tests.chaos.records import NUMBER_HEADER, Entry, Logs
from tests.chaos.report import as_json, as_text, failures
from tests.chaos.run import Check, Rules
from tests.chaos.schedule import short_schedule

pytestmark = [pytest.mark.broker, pytest.mark.timeout(2400)]

SEED = 11
SECONDS = 32.0
HOSTILE, QUARANTINED = "hostile_records_change_nothing", "quarantines_are_of_hostile_records"

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


def is_quarantine(item: Any) -> bool:
    return bool(item["kind"] == "quarantine")


def is_quarantining(marker: Any) -> bool:
    return bool(marker.get("quarantined"))


def is_correction(row: Any) -> bool:
    return bool(row["revision"] == 1)


def is_of_a_small_amount(row: Any) -> bool:
    """True where each split of a tree by the amount goes the other way for a large one."""
    return bool(row["features"]["amount"] < 20)


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


def known_at_the_beginning(entries: list[Entry]) -> list[Entry]:
    """The last label counts from another time."""
    index = _last(entries, is_any)
    known = entries[index]._replace(headers=(*entries[index].headers, ("label-known-at-us", b"1")))
    return [*entries[:index], known, *entries[index + 1 :]]


def last_hostile(*changes: dict[str, Any]) -> Change:
    """Once with each of the changes in place of the last record that is hostile, or that is of one."""

    def change(entries: list[Entry]) -> list[Entry]:
        index = max(number for number, entry in enumerate(entries) if entry.hostile)
        return [*entries[:index], *(entries[index]._replace(**item) for item in changes), *entries[index + 1 :]]

    return change


def first_of_an_input(*changes: dict[str, Any]) -> Change:
    """Once with each of the changes in place of the first record that is of an input, and not of something hostile."""

    def change(entries: list[Entry]) -> list[Entry]:
        index = next(number for number, entry in enumerate(entries) if entry.header(NUMBER_HEADER) is not None)
        return [*entries[:index], *(entries[index]._replace(**item) for item in changes), *entries[index + 1 :]]

    return change


def found(logs: Logs, outcome: Outcome, name: str, rules: Rules | None = None) -> Check:
    """What one check says of other logs, or by other rules."""
    (check,) = [check for check in CHECKS if check.__name__ == name]
    (result,) = check_all(logs, outcome.ledger, rules or outcome.rules, [check])
    return result


def moved(entries: list[Entry]) -> list[Entry]:
    """The last record of an agent stands in the other partition."""
    index = _last(entries, is_any)
    elsewhere = entries[index]._replace(partition=1 - entries[index].partition)
    return [*entries[:index], elsewhere, *entries[index + 1 :]]


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
        ("features", edited(is_of_a_small_amount, add("features.amount", 1e4)), "scores_are_reproduced", "log-odds"),
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
        ("examples", edited(is_example, put("online_weight", 0.5)), "examples_are_consistent", "online"),
        ("examples", edited(is_correction, put("former", "disputed")), "examples_are_consistent", "online"),
        ("examples", edited(is_any, add("logit", 1e-6)), "examples_are_consistent", "logit"),
        ("examples", edited(is_any, add("river_logit", 1e-6)), "examples_are_consistent", "river_logit"),
        ("examples", dropped(is_trained), "weights_are_a_fresh_replay", "weight"),
        ("examples", edited(is_trained, put("label", "legitimate")), "weights_are_a_fresh_replay", "weight"),
        ("models", edited(is_river, add("payload.weights.0", 1e-7)), "weights_are_a_fresh_replay", "weight 0"),
        ("models", edited(is_river, add("payload.lessons.learned", 1)), "weights_are_a_fresh_replay", "updates"),
        ("dead-letters", first_of_an_input(), "dead_letters_are_complete", "has no dead letter"),
        ("dead-letters", first_of_an_input({}, {}), "dead_letters_are_complete", "or had one"),
        (
            "dead-letters",
            first_of_an_input({"value": b"?"}),
            "dead_letters_are_complete",
            "value of the dead letter",
        ),
        ("rerouted", dropped(is_any), "misplaced_are_rerouted", "was not forwarded to rerouted"),
        ("rerouted", doubled(is_any), "misplaced_are_rerouted", "or was before"),
        ("rerouted", moved, "misplaced_are_rerouted", "partition"),
        ("accepted-labels", dropped(is_any), "labels_are_accepted_once", "was not forwarded"),
        ("accepted-labels", doubled(is_any), "labels_are_accepted_once", "or was before"),
        ("accepted-labels", known_at_the_beginning, "labels_are_accepted_once", "known at"),
        ("progress", lambda entries: entries[1:], "progress_covers_every_input", "was never read"),
        ("progress", doubled(is_any), "progress_covers_every_input", "read twice"),
        (
            "progress",
            edited(is_quarantining, put("quarantined", [])),
            QUARANTINED,
            "markers that list it: 0 instead of",
        ),
        ("control", dropped(is_quarantine), QUARANTINED, "quarantines: 0 instead of 1"),
        ("control", doubled(is_quarantine), QUARANTINED, "quarantines: 2 instead of 1"),
        ("control", edited(is_quarantine, put("digest", "another")), QUARANTINED, "digest of the quarantine"),
        ("control", edited(is_quarantine, put("agent", "another")), QUARANTINED, "was not made to fail"),
        ("dead-letters", last_hostile(), HOSTILE, "0 dead letters of"),
        ("dead-letters", last_hostile({}, {"offset": 10**9}), HOSTILE, "2 dead letters of"),
        ("dead-letters", last_hostile({"value": b"?"}), HOSTILE, "value of the dead letter"),
        ("profiled", last_hostile(), HOSTILE, "is not there"),
        ("profiled", last_hostile({"value": b"?"}), HOSTILE, "instead of"),
        ("transactions", first_of_an_input(), "inputs_are_the_ledger", "is not in transactions"),
        ("transactions", lambda entries: [*entries, entries[0]], "inputs_are_the_ledger", "stands twice"),
    ],
)
def test_the_checker_names_what_is_wrong_with_damaged_logs(
    outcome: Outcome, topic: str, change: Change, found_by: str, saying: str
) -> None:
    check = found(outcome.logs.changed(topic, change), outcome, found_by)
    assert check.differences > 0
    assert any(saying in problem for problem in check.problems), check.problems


@pytest.mark.parametrize(
    ("rule", "days", "found_by"),
    [
        ("dedup_horizon_us", 100, "transactions_are_profiled_once"),
        ("label_horizon_us", 1, "labels_are_passed_on"),
        ("label_grace_us", 1, "dead_letters_are_complete"),
        ("maturity_us", 3, "examples_are_consistent"),
    ],
)
def test_the_checker_knows_from_when_on_something_counts(outcome: Outcome, rule: str, days: int, found_by: str) -> None:
    others = outcome.rules._replace(**{rule: days * DAY_US})
    assert found(outcome.logs, outcome, found_by, others).differences > 0


def test_the_checker_finds_what_was_made_of_something_hostile(outcome: Outcome) -> None:
    hostile = next(item for item in outcome.ledger if item.hostile and item.end < 0 and item.topic == "profiled")
    place = {"topic": hostile.topic, "partition": hostile.partition, "offset": hostile.offset}
    for topic in ("decisions", "features", "profiled", "examples"):
        logs = outcome.logs.changed(topic, edited(is_any, put("source", place)))
        problems = found(logs, outcome, "hostile_records_change_nothing").problems
        assert any("which is hostile" in problem for problem in problems), topic


@pytest.mark.parametrize(
    ("topic", "which", "found_by", "saying"),
    [
        ("decisions", is_any, "decisions_are_one_to_one", "was profiled and not decided"),
        ("features", is_any, "features_stand_beside_decisions", "1 decisions, and 0 rows"),
        ("alerts", is_any, "alerts_are_one_to_one", "has none"),
        ("profiled", is_transaction, "transactions_are_profiled_once", "profiled records instead of"),
        ("profiled", is_label, "labels_are_passed_on", "labels in profiled end with"),
        ("examples", is_example, "examples_are_consistent", "lacks 1 examples"),
        ("rerouted", is_any, "misplaced_are_rerouted", "was not forwarded"),
        ("control", is_quarantine, QUARANTINED, "quarantines: 0 instead of 1"),
    ],
)
def test_at_least_once_allows_what_is_repeated_and_not_what_is_missing(
    outcome: Outcome, topic: str, which: Callable[[Any], bool], found_by: str, saying: str
) -> None:
    rules = outcome.rules._replace(exactly_once=False)
    repeated = found(outcome.logs.changed(topic, doubled(which)), outcome, found_by, rules)
    assert (repeated.differences, repeated.problems) == (0, [])
    missing = found(outcome.logs.changed(topic, dropped(which)), outcome, found_by, rules)
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
        changed = outcome.logs.changed(topic, edited(is_any, edit))
        assert found(changed, outcome, found_by, rules).differences > 0, found_by
