"""Labels and lessons: what is passed on, what becomes an example, and that nothing is told twice."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

from tests.chaos.arithmetic import holds, identity, microseconds, sample_position
from tests.chaos.records import Key, Place, rerouted_origin
from tests.chaos.run import Check, Run, key_of, place_of

PRESUMED = "presumed_legitimate"
TAKEN_OVER = ("merchant_id", "event_time", "amount_base", "features", "logit", "score", "versions", "log")


class Told:
    """One valid label, of a transaction that there is."""

    def __init__(self, place: Place, rank: int, label: dict[str, Any], known_at_us: int) -> None:
        self.place, self.rank, self.known_at_us = place, rank, known_at_us
        self.label, self.source = label["label"], label["source"]
        self.labelled_at_us = microseconds(label["labelled_at"])

    @property
    def triple(self) -> tuple[str, str, int]:
        """What decides which of several holds."""
        return self.label, self.source, self.labelled_at_us


def labels_of(run: Run) -> dict[Key, list[Told]]:
    """Valid labels by transaction, in the order in which the card agent read them."""
    read_as = {rerouted_origin(e, run.rules.prefix): e.place for e in run.logs.entries("rerouted")}
    told: dict[Key, list[Told]] = defaultdict(list)
    profiled = {key_of(one): one for _, one in run.profiled}
    for place, sent, label, known_at_us in run.labels():
        one = profiled.get((sent.card, sent.transaction))
        if one is None or known_at_us - one["event_time_us"] > run.rules.label_horizon_us:
            continue
        rank = run.rank.get(read_as.get(place, place), 10**15)
        told[sent.card, sent.transaction].append(Told(place, rank, label, known_at_us))
    for labels in told.values():
        labels.sort(key=lambda one: one.rank)
    return told


def labels_are_passed_on(run: Run) -> Check:
    """``profiled`` has a label for each change of what is known, behind its transaction, and no other."""
    check = Check("labels are passed on once, behind their transactions")
    stands = {key_of(one): (entry.partition, entry.offset) for entry, one in run.profiled}
    found: dict[Key, list[tuple[str, int, Place]]] = defaultdict(list)
    for entry, one in run.profiled_labels:
        key = key_of(one)
        found[key].append((one["known"], one["known_at_us"], place_of(one["source"])))
        partition, offset = stands.get(key, (-1, 0))
        if partition != entry.partition or offset > entry.offset:
            check.differs(f"{key}: label at profiled {entry.partition}/{entry.offset} is not behind its transaction")
    told = labels_of(run)
    check.compared = {"labels": sum(map(len, told.values())), "passed_on": len(run.profiled_labels)}
    for key in found.keys() | told.keys():
        check.same(f"{key}: labels in profiled", found.get(key, []), _changes(told.get(key, [])))
    return check


def _changes(labels: list[Told]) -> list[tuple[str, int, Place]]:
    changes = []
    for count, one in enumerate(labels, 1):
        before, now = (holds(label.triple for label in labels[:n]) for n in (count - 1, count))
        if now != before:
            changes.append((now, one.known_at_us, one.place))
    return changes


def examples_are_consistent(run: Run) -> Check:
    """Each example follows from labels or maturity, repeats what was served, and is told once; none is missing."""
    check = Check("examples follow from labels and decisions")
    told = labels_of(run)
    examples: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for _, example in run.logs.decoded("examples"):
        examples[key_of(example)].append(example)
    check.compared = {"examples": len(run.logs.entries("examples")), "labelled": len(told)}
    newest: dict[int, int] = defaultdict(int)
    for entry, decision in run.logs.decoded("decisions"):
        newest[entry.partition] = max(newest[entry.partition], microseconds(decision["event_time"]))
    for key, of_one in examples.items():
        decision = run.decision_of.get(key)
        if decision is None:
            check.differs(f"{key} has an example and no decision")
            continue
        _check_examples(check, run, key, decision, of_one, told.get(key, []))
    for key, decision in run.decision_of.items():
        matured = microseconds(decision["event_time"]) + run.rules.maturity_us <= newest[run.home(key[0])]
        _check_complete(check, run, key, examples.get(key, []), told.get(key, []), matured)
    return check


def _check_examples(
    check: Check, run: Run, key: Key, decision: dict[str, Any], examples: list[dict[str, Any]], labels: list[Told]
) -> None:
    event_us, rules = microseconds(decision["event_time"]), run.rules
    sampled = _sampled(run, key)
    matured_us = event_us + rules.maturity_us
    revisions = [one["revision"] for one in examples]
    # A label that came after maturity counts a lesson before it, told or (when it was read first) not.
    late = sampled and bool(labels) and any(one.known_at_us > matured_us for one in labels)
    if revisions not in (list(range(len(revisions))), list(range(1, len(revisions) + 1)) if late else None):
        check.differs(f"{key}: revisions {revisions}")
    for example in examples:
        for name in TAKEN_OVER:
            check.same(f"{key}: {name} of the example", example[name], decision[name])
        known_at_us = microseconds(example["known_at"])
        if example["label"] == PRESUMED:
            check.same(f"{key}: known_at of what is presumed", known_at_us, matured_us)
            check.same(f"{key}: source of what is presumed", example["label_source"], None)
            if not sampled or example["revision"]:
                check.differs(f"{key}: presumed legitimate, though not sampled, or after another lesson")
        elif not any(
            (one.label, one.source, one.known_at_us) == (example["label"], example["label_source"], known_at_us)
            for one in labels
        ):
            check.differs(f"{key}: an example {example['label']} of {example['label_source']} without such a label")
        heavy = example["label"] in ("legitimate", PRESUMED) and sampled
        check.same(f"{key}: weight", example["weight"], 1.0 / rules.negative_sample_rate if heavy else 1.0)
    told = [one["label"] for one in examples]
    if any(a == b for a, b in pairwise(told)) and not _withdrawn(labels):
        check.differs(f"{key}: the same lesson twice in a row: {told}")


def _check_complete(
    check: Check, run: Run, key: Key, examples: list[dict[str, Any]], labels: list[Told], matured: bool
) -> None:
    known = holds(one.triple for one in labels)
    sampled = _sampled(run, key)
    last = examples[-1]["label"] if examples else None
    if known == "fraud" and last != "fraud":
        check.differs(f"{key} is known to be fraud; its last example is {last}")
    elif known == "legitimate" and sampled and last != "legitimate":
        check.differs(f"{key} is known to be legitimate and sampled; its last example is {last}")
    elif not labels and bool(examples) != (sampled and matured):
        check.differs(f"{key} has no label, and {len(examples)} examples (sampled {sampled}, matured {matured})")


def _withdrawn(labels: list[Told]) -> bool:
    """Whether something was known, then nothing, so that the same may be told again."""
    changes = [known for known, _, _ in _changes(labels)]
    return "none" in changes


def _sampled(run: Run, key: Key) -> bool:
    return sample_position(identity(*key), "negative") < run.rules.negative_sample_rate
