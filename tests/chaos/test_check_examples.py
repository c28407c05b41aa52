"""The check of examples on logs that are written by hand: one transaction for each thing that labels may do."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from tests.chaos.arithmetic import DAY_US, EPOCH
from tests.chaos.check_examples import examples_are_consistent
from tests.chaos.model import PRESUMED, FeedbackFate, GivenLabel, _Decided, _FeedbackPartition, sampled
from tests.chaos.records import NUMBER_HEADER, Entry, Logs, Sent
from tests.chaos.run import Check, Expected, Rules, Run

RULES = Rules(1, 1, 0.5, 5 * DAY_US, 10 * DAY_US, 10 * DAY_US, expected=Expected())
CARD = "card"
START_DAY = 10_000.0
EMPTY = Run(Logs({}), [], RULES)


def name_of(number: int, *, kept: bool) -> str:
    """The ``number``-th name whose transaction is in the sample of legitimate ones, or is not."""
    names = (f"t{i}" for i in range(10_000))
    return [name for _, name in zip(range(number + 1), (n for n in names if sampled(EMPTY, (CARD, n)) == kept))][-1]  # noqa: B905


class GivenExample(NamedTuple):
    """What an example says."""

    label: str
    source: str | None
    day: float
    weight: float
    revision: int
    former: tuple[str | None, float] = (None, 0.0)
    """The label that the online model undoes, and its weight."""
    online_weight: float | None = None
    """None for ``weight``."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of an example that say it."""
        return {
            "label": self.label,
            "label_source": self.source,
            "known_at": at(self.day),
            "weight": self.weight,
            "revision": self.revision,
            "online_weight": self.weight if self.online_weight is None else self.online_weight,
            "former": self.former[0],
            "former_weight": self.former[1],
            "held": False,
        }


class Case(NamedTuple):
    """Labels of one transaction (days after it, what, who), and the examples that must come of it."""

    name: str
    labels: tuple[tuple[float, str, str], ...]
    examples: tuple[GivenExample, ...]


CASES = {
    "nothing, sampled": Case(name_of(0, kept=True), (), (GivenExample(PRESUMED, None, 5, 2.0, 0),)),
    "nothing, unsampled": Case(name_of(0, kept=False), (), ()),
    "legitimate, unsampled": Case(name_of(1, kept=False), ((1, "legitimate", "issuer"),), ()),
    "legitimate, sampled": Case(
        name_of(1, kept=True), ((1, "legitimate", "issuer"),), (GivenExample("legitimate", "issuer", 1, 2.0, 0),)
    ),
    "legitimate, reviewed": Case(
        name_of(7, kept=False), ((1, "legitimate", "analyst"),), (GivenExample("legitimate", "analyst", 1, 1.0, 0),)
    ),
    "fraud": Case(name_of(2, kept=False), ((1, "fraud", "analyst"),), (GivenExample("fraud", "analyst", 1, 1.0, 0),)),
    "only a rule": Case(name_of(2, kept=True), ((1, "fraud", "rule"),), (GivenExample(PRESUMED, None, 5, 2.0, 0),)),
    "only disputed": Case(
        name_of(3, kept=True), ((1, "disputed", "issuer"),), (GivenExample(PRESUMED, None, 5, 2.0, 0),)
    ),
    "corrected, unsampled": Case(
        name_of(3, kept=False),
        ((1, "fraud", "customer"), (2, "legitimate", "analyst")),
        (
            GivenExample("fraud", "customer", 1, 1.0, 0),
            GivenExample("legitimate", "analyst", 2, 1.0, 1, ("fraud", 1.0)),
        ),
    ),
    "corrected by who has not looked": Case(
        name_of(9, kept=True),
        ((1, "fraud", "customer"), (2, "legitimate", "issuer")),
        (GivenExample("fraud", "customer", 1, 1.0, 0), GivenExample("legitimate", "issuer", 2, 1.0, 1, ("fraud", 1.0))),
    ),
    "withdrawn before maturity": Case(
        name_of(4, kept=True),
        ((1, "fraud", "customer"), (2, "unknown", "analyst")),
        (
            GivenExample("fraud", "customer", 1, 1.0, 0),
            GivenExample("withdrawn", "analyst", 2, 1.0, 1, ("fraud", 1.0), online_weight=0.0),
        ),
    ),
    "fraud after maturity": Case(
        name_of(5, kept=True),
        ((7, "fraud", "chargeback"),),
        (GivenExample(PRESUMED, None, 5, 2.0, 0), GivenExample("fraud", "chargeback", 7, 1.0, 1, online_weight=0.0)),
    ),
    "fraud after maturity, unsampled": Case(
        name_of(8, kept=False),
        ((7, "fraud", "chargeback"),),
        (GivenExample("fraud", "chargeback", 7, 1.0, 0, online_weight=0.0),),
    ),
    "behind the horizon": Case(
        name_of(6, kept=True), ((11, "fraud", "chargeback"),), (GivenExample(PRESUMED, None, 5, 2.0, 0),)
    ),
}


def at(days: float) -> str:
    return (EPOCH + timedelta(days=START_DAY + days)).isoformat()


def made(change: Callable[[str, list[GivenExample]], list[GivenExample]] = lambda _, examples: examples) -> Run:
    """A run of all cases, each input a batch of its own, whose examples ``change`` has changed."""
    inputs: list[tuple[float, str, str, str, str]] = [
        (0.0, "transactions", case.name, "", "") for case in CASES.values()
    ]
    inputs += [
        (day, "labels", case.name, label, source) for case in CASES.values() for day, label, source in case.labels
    ]
    # Time goes on by the transactions of somebody else.
    inputs += [(float(day), "transactions", f"clock{day}", "", "") for day in (3, 6, 9, 12, 15)]
    topics: dict[str, list[Entry]] = {}
    ledger: list[Sent] = []

    def write(topic: str, value: dict[str, Any], number: int | None = None, days: float = 0.0) -> int:
        entries = topics.setdefault(topic, [])
        headers = () if number is None else ((NUMBER_HEADER, str(number).encode()),)
        milliseconds = round((START_DAY + days) * 86_400_000)
        content = json.dumps(value).encode()
        entries.append(Entry(topic, 0, len(entries), milliseconds, CARD.encode(), content, headers))
        return len(entries) - 1

    def progress(agent: str, topic: str, offset: int) -> None:
        write("progress", {"agent": agent, "starts": {topic: offset}, "ends": {topic: offset + 1}})

    for number, (day, topic, name, label, source) in enumerate(sorted(inputs)):
        stated: dict[str, Any] = {"transaction_id": name, "card_id": CARD}
        if topic == "transactions":
            stated |= {"event_time": at(day)}
        else:
            stated |= {"label": label, "source": source, "labelled_at": at(day)}
        offset = write(topic, stated, number, day)
        entry = topics[topic][-1]
        ledger.append(Sent(number, topic, 0, entry.timestamp_ms, entry.key, entry.value, "plain", None, CARD, name))
        if topic == "transactions":
            progress("card", topic, offset)
            place = write("features", decided(name, day, offset))
            progress("feedback", "features", place)
        else:
            place = write("accepted-labels", stated, number, day)
            accepted = topics["accepted-labels"][-1]
            origin = tuple((f"label-{name}", str(source).encode()) for name, source in
                           (("topic", "labels"), ("partition", 0), ("offset", offset)))  # fmt: skip
            topics["accepted-labels"][-1] = accepted._replace(headers=(*accepted.headers, *origin))
            progress("card", "accepted-labels", place)
            progress("feedback", "accepted-labels", place)
    served = {topic["transaction_id"]: topic for topic in (json.loads(e.value or b"") for e in topics["features"])}
    for title, case in CASES.items():
        for example in change(title, list(case.examples)):
            write("examples", {**served[case.name], **example.fields()})
    for day in (3, 6, 9, 12, 15):
        if sampled(EMPTY, (CARD, f"clock{day}")) and day + 5 <= 15:
            write("examples", {**served[f"clock{day}"], **GivenExample(PRESUMED, None, day + 5, 2.0, 0).fields()})
    return Run(Logs({name: tuple(entries) for name, entries in topics.items()}), ledger, RULES)


def decided(name: str, day: float, offset: int) -> dict[str, Any]:
    """A row of ``features``."""
    return {
        "transaction_id": name,
        "card_id": CARD,
        "merchant_id": "m",
        "event_time": at(day),
        "amount_base": 1.0,
        "features": {"amount": 1.0},
        "logit": 0.5,
        "river_logit": 0.75,
        "score": 0.6,
        "versions": {"lightgbm": "a"},
        "log": {"partition": 0, "offset": offset},
    }


def found(title: str, change: Callable[[list[GivenExample]], list[GivenExample]]) -> str:
    """What the check says where the examples of one case are others."""
    check: Check = examples_are_consistent(made(lambda name, examples: change(examples) if name == title else examples))
    assert check.differences
    assert all(CASES[title].name in problem for problem in check.problems), check.problems
    return "\n".join(check.problems)


def test_examples_that_are_right_pass() -> None:
    check = examples_are_consistent(made())
    assert (check.differences, check.problems) == (0, [])
    assert check.compared["presumed"] >= 5
    assert [check.compared[what] for what in ("corrections", "not_sampled", "labels_too_late")] == [4, 1, 1]


@pytest.mark.parametrize("title", [title for title, case in CASES.items() if case.examples])
def test_an_example_that_is_missing_is_found(title: str) -> None:
    assert "lacks 1 examples" in found(title, lambda examples: examples[:-1])


@pytest.mark.parametrize("title", [title for title, case in CASES.items() if case.examples])
def test_an_example_that_is_emitted_twice_is_found(title: str) -> None:
    assert "examples instead of" in found(title, lambda examples: [*examples, examples[-1]])


@pytest.mark.parametrize(
    ("title", "example"),
    [
        ("legitimate, unsampled", GivenExample("legitimate", "analyst", 1, 1.0, 0)),
        ("nothing, unsampled", GivenExample(PRESUMED, None, 5, 2.0, 0)),
        ("behind the horizon", GivenExample("fraud", "chargeback", 11, 1.0, 1)),
        ("only a rule", GivenExample("fraud", "rule", 1, 1.0, 1)),
        ("only disputed", GivenExample("fraud", "issuer", 1, 1.0, 1)),
        ("withdrawn before maturity", GivenExample(PRESUMED, None, 5, 2.0, 1)),
    ],
)
def test_an_example_too_many_is_found(title: str, example: GivenExample) -> None:
    assert "examples instead of" in found(title, lambda examples: [*examples, example])


@pytest.mark.parametrize(
    "change",
    [
        {"label": "legitimate"},
        {"source": "issuer"},
        {"day": 2},
        {"weight": 2.0},
        {"revision": 1},
        {"former": ("fraud", 1.0)},
        {"online_weight": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_example_that_says_something_else_is_found(change: dict[str, Any]) -> None:
    found("fraud", lambda examples: [examples[0]._replace(**change)])


@pytest.mark.parametrize(("held", "former"), [(False, ("fraud", 1.0)), (True, (None, 0.0))])
def test_a_label_that_was_held_was_not_learned_and_is_not_undone(
    *, held: bool, former: tuple[str | None, float]
) -> None:
    key, fate = (CARD, name_of(0, kept=False)), FeedbackFate()
    partition = _FeedbackPartition(EMPTY, 0, fate, {})
    partition._decided[key] = _Decided(0, decided(key[1], 0.0, 0))
    partition._join(key, GivenLabel(("labels", 0, 0), "fraud", "customer", DAY_US, DAY_US, held))
    partition._join(key, GivenLabel(("labels", 0, 1), "legitimate", "analyst", 2 * DAY_US, 2 * DAY_US))
    assert [example.online for example in fate.examples[key]] == [(1.0, None, 0.0), (1.0, *former)]


def test_at_least_once_allows_a_repeated_example_and_no_missing_one() -> None:
    def differences(change: Callable[[str, list[GivenExample]], list[GivenExample]]) -> int:
        run = made(change)
        loose = Run(run.logs, run.ledger, run.rules._replace(exactly_once=False))
        return examples_are_consistent(loose).differences

    assert differences(lambda _, examples: examples) == 0
    assert differences(lambda _, examples: [example for example in examples for _ in range(2)]) == 0
    assert differences(lambda title, examples: [] if title == "fraud" else examples) > 0
    assert differences(lambda title, examples: [] if title == "only disputed" else examples) > 0


def test_of_two_decisions_of_one_row_the_last_one_that_was_read_is_taught() -> None:
    """At least once: the score agent has read a batch again, with other models."""

    def differences(of_second: bool) -> list[str]:
        run = made()
        name = CASES["fraud"].name

        def decided_twice(entries: list[Entry]) -> list[Entry]:
            found = []
            for entry in entries:
                row = json.loads(entry.value or b"")
                again = [row, {**row, "score": 0.7}] if row["transaction_id"] == name else [row, row]
                found += [
                    entry._replace(offset=2 * entry.offset + n, value=_bytes(source)) for n, source in enumerate(again)
                ]
            return found

        def read_both(entries: list[Entry]) -> list[Entry]:
            found = []
            for entry in entries:
                row = json.loads(entry.value or b"")
                if "features" in row["starts"]:
                    start = 2 * row["starts"]["features"]
                    row |= {"starts": {"features": start}, "ends": {"features": start + 2}}
                found.append(entry._replace(value=_bytes(row)))
            return found

        def taught(entries: list[Entry]) -> list[Entry]:
            found = []
            for entry in entries:
                row = json.loads(entry.value or b"")
                is_second = of_second and row["transaction_id"] == name
                found.append(entry._replace(value=_bytes({**row, "score": 0.7})) if is_second else entry)
            return found

        logs = run.logs.changed("features", decided_twice).changed("progress", read_both)
        loose = run.rules._replace(exactly_once=False)
        return examples_are_consistent(Run(logs.changed("examples", taught), run.ledger, loose)).problems

    assert differences(of_second=True) == []
    (problem,) = differences(of_second=False)
    assert "decided of an example" in problem


def _bytes(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()
