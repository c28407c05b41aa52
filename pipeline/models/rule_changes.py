"""Changes of the active set of rules by a person: each is checked, and publishes the next set."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple, Self

from msgspec import to_builtins
from msgspec.structs import replace

from pipeline.decision.lists import refuse_unknown_lists
from pipeline.decision.rules import (
    RULES,
    Rule,
    RuleSet,
    State,
    adopted,
    condition_of,
    lists_read,
    names_read,
)
from pipeline.expressions.trees import fields_in
from pipeline.features.feature_set import FeatureSet
from pipeline.models.changes import ChangeAuthor, refuse_proposer
from pipeline.models.library import PublishedVersions
from pipeline.models.list_changes import active_lists
from pipeline.models.publish import ControlWriter, ModelChange, VersionToPublish
from pipeline.models.published_files import declared_features
from pipeline.models.rule_records import RuleFigures, RuleStep, RuleTest, RuleTrip, rule_test
from pipeline.models.version_history import BREAKER
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.messages import Activation, Assessment, ListDefinition
from schemas.toml_files import suggestion

TESTED: Final = "tested"
"""Outcome of an assessment of a rule on history."""
TESTED_DAYS: Final = 7
"""Days of history with transactions that a rule is tested on before it may be activated."""


class Trip(NamedTuple):
    """An active rule that has exceeded a cap."""

    rule: Rule
    reason: str
    figures: RuleTrip


class RuleChange(NamedTuple):
    """A difference between two sets of rules."""

    code: str
    before: Rule | None
    """The version that goes; None where there was none."""
    after: Rule | None
    """The version that comes; None where there is none."""


def differences(before: RuleSet, after: RuleSet) -> list[RuleChange]:
    """Return in what two sets differ, by code; a version that only moves on to another state is one change.

    Of a code, what goes stands before what comes.
    """
    found = []
    for code in sorted({rule.code for rule in (*before.rules, *after.rules)}):
        old = [rule for rule in before.rules if rule.code == code and rule not in after.rules]
        new = [rule for rule in after.rules if rule.code == code and rule not in before.rules]
        came = []
        for rule in new:
            same = next((each for each in old if each.meaning == rule.meaning), None)
            replaced = same or next((each for each in old if each.is_current == rule.is_current), None)
            if replaced is not None:
                old.remove(replaced)
            came.append(RuleChange(code, replaced, rule))
        found += [*(RuleChange(code, rule, None) for rule in old), *came]
    return found


def applied(before: RuleSet, files: Iterable[Rule]) -> RuleSet:
    """Return a set with the rules of files: one that is new, or says something else than its code's, is a draft.

    A draft or a rule in shadow goes where the file says what the active version says.
    """
    after = before
    for rule in files:
        active, candidate = (before.find(rule.code, active=is_active) for is_active in (True, False))
        if active is not None and active.meaning == rule.meaning:
            after = after.without(rule.code, active=False)
        elif candidate is None or candidate.meaning != rule.meaning:
            after = after.with_rules(rule)
    return after


class RuleChanges:
    """Makes changes on one cluster, from what was there when this object was made: if somebody else came since, none.

    Args:
        published: The cluster's versions.
        writer: Writes to the cluster.
        settings: Settings of the cluster.
        declared: Returns the features of the cluster's active declaration, None without one.
        lists: Returns the cluster's lists, by name.

    Raises:
        ModelError: By every method: there is no such rule, or it cannot take this step.
        DeliveryFailed: By every method that makes a change: nothing became active.
    """

    def __init__(
        self,
        published: PublishedVersions,
        writer: ControlWriter,
        settings: Settings,
        declared: Callable[[], FeatureSet | None] = lambda: None,
        lists: Callable[[], Mapping[str, ListDefinition]] = dict,
    ) -> None:
        self._published, self._writer, self._settings, self._declared = published, writer, settings, declared
        self._lists = lists

    @classmethod
    def on(cls, bootstrap: str, settings: Settings, writer: ControlWriter | None = None) -> Self:
        """Read a cluster; ``writer`` has the right to write on ``control``, None where nothing is changed."""
        published = PublishedVersions.on(bootstrap, settings)
        declared = partial(declared_features, bootstrap, settings)
        lists = partial(active_lists, bootstrap, settings, published)
        return cls(published, writer or ControlWriter(bootstrap, settings), settings, declared, lists)

    @property
    def rules(self) -> RuleSet:
        """The active set."""
        return self._published.model_set.rules

    def history(self, code: str) -> Iterator[tuple[Activation, RuleStep]]:
        """Yield the activations that changed a rule, oldest first, and what each changed."""
        yield from (found for found in self._published.history.rule_changes() if found[1].code == code)

    def since(self) -> dict[tuple[str, str], datetime]:
        """Return when rules came into a state last, by code and state."""
        return self._published.history.rules_since()

    def tests(self, rule: Rule, *, held_out: bool = False) -> list[RuleTest]:
        """Return the tests of a rule's code on history, or looks at the days held out, whatever its text was."""
        return [
            test
            for event in self._published.history.events
            if isinstance(event, Assessment) and event.outcome == TESTED
            if (test := rule_test(event)) is not None and (test.rule, test.held_out) == (rule.code, held_out)
        ]

    def record_test(self, rule: Rule, days: int, history: str, by: str, *, held_out: bool = False) -> None:
        """Record that a rule was tested; nothing changes.

        Args:
            rule: The rule; its condition is what was tested.
            days: Days with transactions that the figures are of.
            history: Name of the history.
            by: Who tested it.
            held_out: Whether it was a look at the days that tests leave out.
        """
        figures = to_builtins(RuleTest(rule.code, rule.expression, days, history, held_out))
        self._writer.note(
            Assessment(versions=[], outcome=TESTED, by=by, reason="", figures=figures, assessed_at=datetime.now(UTC))
        )

    def apply(self, files: Sequence[Rule], author: ChangeAuthor) -> RuleSet:
        """Make the rules of files drafts; see `applied`."""
        return self._write(applied(self.rules, files), author)

    def publish(self, rule: Rule | str, author: ChangeAuthor) -> RuleSet:
        """Put a rule in shadow: a draft by its code, or one of a file."""
        found = rule if isinstance(rule, Rule) else self._candidate(rule, "draft")
        return self._write(self.rules.with_rules(replace(found, state="shadow")), author)

    def activate(self, code: str, author: ChangeAuthor, *, untested: bool = False) -> RuleSet:
        """Make a rule in shadow active, in place of the version that was; without one, a stopped rule again.

        ``untested``: also if its condition was not tested on `TESTED_DAYS` of history.
        """
        candidate, current = (self.rules.find(code, active=is_current) for is_current in (False, True))
        if current is not None and current.state == "stopped" and (candidate is None or candidate.state != "shadow"):
            return self._write(self.rules.with_rules(replace(current, state="active")), author)
        found = self._candidate(code, "shadow")
        if not (self.is_tested(found) or untested):
            raise ModelError(
                f"rule {code!r} was not tested on {TESTED_DAYS} days of history with transactions: run "
                "`fraud-pipeline rules test`, or activate it with --untested"
            )
        if self._settings.second_approval:
            published = [event for event, change in self.history(code) if change.after == "shadow"]
            if not published:
                raise ModelError(f"nothing says who put rule {code!r} in shadow: retire it, and publish it again")
            refuse_proposer(self._published.history, published[-1], author.by, self._writer.key_id, f"rule {code!r}")
        return self._write(self.rules.without(code).with_rules(replace(found, state="active")), author)

    def is_tested(self, rule: Rule) -> bool:
        """Return whether the condition of a rule, as it is written, was tested on `TESTED_DAYS` of history."""
        return any(test.expression == rule.expression and test.days >= TESTED_DAYS for test in self.tests(rule))

    def retire(self, code: str, author: ChangeAuthor) -> RuleSet:
        """Take a rule out of the set, with what was to follow it."""
        if not any(rule.code == code for rule in self.rules.rules):
            raise ModelError(no_rule(code, self.rules))
        return self._write(self.rules.without(code), author, checked=False)

    def stop(self, trips: Sequence[Trip]) -> RuleSet:
        """Put active rules that have exceeded a cap in shadow; whatever else the set lacks does not hinder it."""
        stopped = self.rules.with_rules(*(replace(trip.rule, state="stopped") for trip in trips))
        reason = "; ".join(f"{trip.rule.code}: {trip.reason}" for trip in trips)
        return self._write(
            stopped, ChangeAuthor(BREAKER, reason), trips=[trip.figures for trip in trips], checked=False
        )

    def adopt(self, author: ChangeAuthor) -> RuleSet:
        """Move the rules of the active policy to the set, where they stay active, and make a policy without active.

        A rule whose code is active in the set already stays as it is there.
        """
        policy = self._published.model_set.policy
        if policy is None or not policy.old_rules:
            raise ModelError("the active policy has no rules of its own: there is nothing to adopt")
        own = {rule.code for rule in self.rules.rules if rule.is_current}
        moved = [rule for rule in adopted(policy.old_rules, author.by) if rule.code not in own]
        after = RuleSet([*self.rules.rules, *moved])
        return self._write(after, author, VersionToPublish.from_models(policy.replace(old_rules=())))

    def _step(self, code: str, old: Rule | None, new: Rule | None) -> RuleStep:
        before = old.state if old else None
        if new is None:
            return RuleStep(code, before, "retired")
        tests, looks = (len(self.tests(new, held_out=held_out)) for held_out in (False, True))
        return RuleStep(code, before, new.state, tests, looks, self.is_tested(new))

    def _candidate(self, code: str, state: State) -> Rule:
        found = self.rules.find(code, active=False)
        if found is None and self.rules.find(code, active=True) is not None:
            raise ModelError(f"rule {code!r} is active, and no other version of it is {_named(state)}")
        if found is None:
            raise ModelError(no_rule(code, self.rules))
        if found.state != state:
            raise ModelError(
                f"rule {code!r} is {_named(found.state)}: only one that is {_named(state)} takes this step"
            )
        return found

    def _write(
        self,
        after: RuleSet,
        author: ChangeAuthor,
        others: Sequence[VersionToPublish] = (),
        *,
        trips: Sequence[RuleTrip] = (),
        checked: bool = True,
    ) -> RuleSet:
        """Write a set that differs from the active one, and its activation."""
        if not (changes := differences(self.rules, after)) and not others:
            raise ModelError("the active set says this already: nothing is to be changed")
        if checked:
            self._refuse_unreadable(after)
            self._refuse_twice(after, adopts=bool(others))
        figures = to_builtins(RuleFigures([self._step(*change) for change in changes], list(trips)))
        step = ModelChange(RULES, author.by, author.reason, {"before": {RULES: self.rules.version}, **figures})
        contents = [*VersionToPublish.from_models(after), *others]
        self._writer.activate(self._writer.contents(contents), step)
        return after

    def _refuse_twice(self, after: RuleSet, *, adopts: bool) -> None:
        policy = self._published.model_set.policy
        olds = policy.old_rules if policy is not None and not adopts else ()
        of_policy = {rule.code for rule in adopted(olds, "policy")}
        if twice := sorted(of_policy & {rule.code for rule in after.rules}):
            raise ModelError(
                f"the active policy has a rule {twice[0]!r} of its own: run `fraud-pipeline rules adopt` first"
            )

    def _refuse_unreadable(self, after: RuleSet) -> None:
        """Refuse a set that reads what is not declared on the cluster, or does not reach the workers."""
        declared = self._declared()
        read = names_read(after.payload)
        known = () if declared is None else (*declared.features, *declared.numbers, *declared.texts)
        if declared is not None and (missing := sorted(read.difference(known))):
            raise ModelError(
                f"rules read {', '.join(missing[:5])}, which the cluster's active declaration of features lacks: "
                "publish one with it first (fraud-pipeline features publish)"
            )
        refuse_unknown_lists(lists_read(after.rules), self._lists)
        refuse_dropped(after.rules, self._settings)


def refuse_dropped(rules: Iterable[Rule], settings: Settings) -> None:
    """Raise `ModelError` where a rule reads a field that does not reach the workers."""
    names = {name for rule in rules for name in fields_in(condition_of(rule))}
    if dropped := sorted(names & settings.dropped_names):
        raise ModelError(
            f"rules read {', '.join(dropped)}, which FRAUD_PIPELINE_DROPPED_FIELDS keeps out of profiled: let it in"
        )


def _named(state: State) -> str:
    return {"draft": "a draft", "shadow": "in shadow", "active": "active", "stopped": "stopped"}[state]


def no_rule(code: str, rules: RuleSet) -> str:
    """Return the sentence for a code that no rule of a set has."""
    codes = [*dict.fromkeys(rule.code for rule in rules.rules)]
    return f"the active set has no rule {code!r}; {suggestion(code, codes) if codes else 'it has none'}"
