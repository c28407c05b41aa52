"""Labels and examples: what is passed on, what becomes an example, and that nothing is emitted twice."""

from collections import defaultdict
from typing import Any

from tests.chaos.arithmetic import holds, microseconds
from tests.chaos.model import (
    PRESUMED,
    REVIEWERS,
    TAKEN_OVER,
    WITHDRAWN,
    Change,
    ExpectedExample,
    FeedbackFate,
    GivenLabel,
    follow_cards,
    follow_feedback,
    sampled,
    taken_over,
)
from tests.chaos.records import Key, Place
from tests.chaos.run import Check, LogPlace, Run, key_of, log_of, place_of


def labels_are_passed_on(run: Run) -> Check:
    """``profiled`` has a label for each change of what is known, behind its transaction, and no other."""
    check = Check("labels are passed on once, behind their transactions")
    fate = follow_cards(run)
    first: dict[Key, LogPlace] = {}
    for entry, label in run.profiled_as_written:
        first.setdefault(key_of(label), entry.log)
    found: dict[Key, list[Change]] = defaultdict(list)
    for entry, label in run.profiled_labels:
        key = key_of(label)
        found[key].append(Change(label["known"], label["known_at_us"], place_of(label["source"])))
        behind = first.get(key, (-1, 0, 0))
        if behind[0] != entry.partition or behind > entry.log:
            check.differs(f"{key}: label at profiled {entry.partition}/{entry.offset} is not behind its transaction")
    check.compared = {
        "labels": sum(map(len, fate.applied.values())),
        "passed_on": len(run.profiled_labels),
        "too_late": fate.too_late,
    }
    for key in found.keys() | fate.changes.keys():
        if run.rules.exactly_once:
            check.same(f"{key}: labels in profiled", found.get(key, []), fate.changes.get(key, []))
        else:
            _check_repeated(check, key, found.get(key, []), fate.changes.get(key, []), fate.applied.get(key, []))
    return check


def _check_repeated(
    check: Check, key: Key, found: list[Change], wanted: list[Change], labels: list[GivenLabel]
) -> None:
    """At least once: each label that was passed on is one that there is, and the last says what is known."""
    there: dict[Place, GivenLabel] = {label.place: label for label in labels}
    for sent_record in found:
        label = there.get(sent_record.place)
        if label is None or label.known_at_us != sent_record.known_at_us:
            check.differs(f"{key}: labels in profiled: {sent_record} was not to be passed on")
    if (found[-1].known if found else "none") != (wanted[-1].known if wanted else "none"):
        check.differs(f"{key}: labels in profiled end with {found[-1:]} instead of {wanted[-1:]}")


def examples_are_consistent(run: Run) -> Check:
    """``examples`` has exactly what labels, maturity and sampling ask for, each with what the models saw."""
    check = Check("examples follow from labels and decisions")
    fate = follow_feedback(run)
    examples: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for _, example in run.logs.decoded("examples"):
        examples[key_of(example)].append(example)
    wanted = [example for expected in fate.examples.values() for example in expected]
    check.compared = {
        "examples": len(wanted),
        "presumed": sum(label.label == PRESUMED for label in wanted),
        "corrections": sum(item.revision > 0 for item in wanted),
        "not_sampled": fate.not_sampled,
        "labels_too_late": fate.too_late,
        "decisions_forgotten": fate.forgotten,
    }
    for key in sorted(examples.keys() | fate.examples.keys()):
        of_one = examples.get(key, [])
        for example in of_one:
            _check_served(check, run, key, example)
        if key not in run.transactions_read_again:
            _check_exactly(check, run, key, of_one, fate.examples.get(key, []))
    if not run.rules.hasty:
        _check_knowledge(check, run, examples, fate)
    return check


def _check_served(check: Check, run: Run, key: Key, example: dict[str, Any]) -> None:
    log = log_of(example)
    served = [feature for feature in run.features_at.get(log, ()) if key_of(feature) == key]
    if not served:
        check.differs(f"{key} has an example of profiled {log}, from which it was not decided")
    elif not any(all(example[name] == item[name] for name in TAKEN_OVER) for item in served):
        for name in TAKEN_OVER:
            check.same(f"{key}: {name} of the example", example[name], served[-1][name])


def _check_exactly(
    check: Check, run: Run, key: Key, examples: list[dict[str, Any]], wanted: list[ExpectedExample]
) -> None:
    found = [_expected(example) for example in examples]
    if not run.rules.exactly_once:
        # What was written by a batch that failed may be of the decision before; the last one counts.
        found = list({item._replace(decided=""): item for item in found}.values())
    if found == wanted:
        return
    if len(found) > len(wanted):
        check.differs(f"{key} has {len(found)} examples instead of {len(wanted)}: {_missing(found, wanted)}")
    elif len(found) < len(wanted):
        check.differs(f"{key} lacks {len(wanted) - len(found)} examples: {_missing(wanted, found)}")
    for item, right in zip(found, wanted, strict=False):
        for name in ExpectedExample._fields:
            check.same(f"{key}: {name} of an example", getattr(item, name), getattr(right, name))


def _missing(more: list[ExpectedExample], fewer: list[ExpectedExample]) -> list[ExpectedExample]:
    return [item for item in more if item not in fewer] or more


def _expected(example: dict[str, Any]) -> ExpectedExample:
    return ExpectedExample(
        label=example["label"],
        source=example["label_source"],
        known_at_us=microseconds(example["known_at"]),
        weight=example["weight"],
        revision=example["revision"],
        log=log_of(example),
        decided=taken_over(example),
        online=(example["online_weight"], example["former"], example["former_weight"]),
    )


def _check_knowledge(
    check: Check, run: Run, examples: dict[Key, list[dict[str, Any]]], labels_fate: FeedbackFate
) -> None:
    """Whatever the order in which feedback met labels and decisions: what is known at the end has been emitted.

    Of a transaction that was accepted a second time only its examples are compared, above: its first life's end is
    not its second one's.
    """
    fate, given_up = follow_cards(run), {sent_record.place for sent_record in labels_fate.given_up}
    rate, twice = run.rules.negative_sample_rate, {record.key for record in fate.accepted if record.again}
    for key, labels in fate.applied.items():
        if key in twice:
            continue
        if any(label.place in given_up for label in labels):
            check.differs(
                f"{key}: its decision came so late that feedback had given its label up: event time passes too fast "
                "for the delays of this run"
            )
            continue
        known = holds(label.triple for label in labels)
        kept, of_one = sampled(run, key), examples.get(key, [])
        last = of_one[-1]["label"] if of_one else None
        if known == "fraud" and last != "fraud":
            check.differs(f"{key} is known to be fraud; its last example is {last}")
        elif known == "legitimate" and (kept or of_one) and last != "legitimate":
            check.differs(f"{key} is known to be legitimate and sampled or corrected; its last example is {last}")
        elif known == "none" and last not in (None, WITHDRAWN, PRESUMED):
            check.differs(f"{key} is no longer known to be {last}, which is its last example")
    for key, of_one in examples.items():
        labels = fate.applied.get(key, [])
        there = {(label.label, label.source, label.known_at_us) for label in labels}
        by_revision = {row["revision"]: row["label"] for row in of_one}
        for row in of_one:
            reported = row["label"], row["label_source"], microseconds(row["known_at"])
            heavy = sampled(run, key) and row["label"] in ("legitimate", PRESUMED)
            heavy &= row["label_source"] not in REVIEWERS
            if row["held"] not in (labels_fate.held.get((key, reported[1], reported[2])) or {False}):
                check.differs(f"{key}: held is {row['held']}, of an example {reported[0]} of {reported[1]}")
            corrects = by_revision.get(row["revision"] - 1) == "fraud"
            if not (corrects and key in twice):
                check.same(f"{key}: weight", row["weight"], 1.0 / rate if heavy and not corrects else 1.0)
            if row["label"] == PRESUMED:
                matured_us = microseconds(row["event_time"]) + run.rules.maturity_us
                check.same(f"{key}: known_at of what is presumed", reported[1:], (None, matured_us))
                if not sampled(run, key):
                    check.differs(f"{key}: presumed legitimate, though not sampled")
            elif reported[0] == WITHDRAWN:
                if reported[1:] not in {label[1:] for label in there} and key not in twice:
                    check.differs(f"{key}: an example of a label withdrawn by {reported[1]} without such a label")
            elif reported not in there and key not in twice:
                check.differs(f"{key}: an example {reported[0]} of {reported[1]} without such a label")
