"""Rules: conditions that somebody writes, and the set of them that is active. Immutable; one set for all partitions."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import chain, count
from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.rule_program import Read, RuleProgram, Texts
from pipeline.expressions.trees import (
    Condition,
    ExpressionError,
    Node,
    ValueKind,
    check_tree,
    fields_in,
    list_fields_in,
    text_of,
)
from pipeline.features.catalogue import ACTIVE, ATTRIBUTES, FEATURES
from pipeline.features.checked_declaration import CONTRACT_FIELDS
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.payload import VERSION_DIGITS, decode_payload, encode_payload, payload_digest

RULES: Final = "rules"
"""Name of sets of rules on ``models`` and ``control``."""
MOST_RULES: Final = 1_000
MOST_STEPS: Final = 20_000
"""Different parts of all conditions of a set that are evaluated: each takes a kilobyte, and 0.2 us a batch."""
MOST_OLD_RULES: Final = 100
"""Rules of a policy."""
MOST_HITS: Final = 20
"""Most codes of rules on a decision."""
LONGEST_CODE: Final = 100
LONGEST_SENTENCE: Final = 1_000
"""Characters of what an analyst reads of a rule."""
CONTROL: Final = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What ends a line, moves a cursor or turns the direction of what people read."""
FILE_SUFFIX: Final = ".sql"
_SUFFIX: Final = re.compile(re.escape(FILE_SUFFIX) + r"\Z")
SCORES: Final = ("score", *(kind.name for kind in KINDS))
"""Probabilities that a rule can read: the blend's, and each model's own."""
TEXTS: Final = frozenset({*(name for name, kind in CONTRACT_FIELDS.items() if kind is ValueKind.TEXT), *ACTIVE.texts})
FIELDS: Final[dict[str, ValueKind]] = {
    **dict.fromkeys(SCORES, ValueKind.NUMBER),
    **dict.fromkeys(sorted(TEXTS), ValueKind.TEXT),
    **dict.fromkeys(ATTRIBUTES, ValueKind.NUMBER),
    **{name: ValueKind.NUMBER for name in FEATURES if name not in {feature.name for feature in ACTIVE.carried}},
}
"""What a rule can read: scores, fields of the transaction, and declared features."""
COLUMNS: Final = {name: column for column, name in enumerate(FEATURES)} | {
    name: FEATURES.index(feature) for name, feature in zip(ATTRIBUTES, ACTIVE.attribute_features, strict=True)
}
"""Columns of the features among them."""

Severity = Literal["low", "medium", "high", "critical"]
Action = Literal["alert", "tag"]
State = Literal["draft", "shadow", "active", "stopped"]
_SEVERITIES: Final = get_args(Severity)
_SIGNS: Final = {"==": "=", "!=": "<>"}


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A version of a rule: a condition, and what follows where it is true."""

    code: str
    """Stable; it becomes the code of the alert's reason."""
    owner: str
    reason: str
    """The sentence that an analyst reads."""
    severity: Severity
    action: Action
    """``tag``: the decision names the rule, and there is no alert."""
    state: State
    """``draft``: not evaluated. ``shadow``: counted and named by decisions. ``active``: acts. ``stopped``: was active,
    and is in shadow since it exceeded a cap."""
    tree: dict[str, Any]
    """The condition, as `pipeline.expressions.trees.Condition.data` returns it."""
    max_alerts_per_hour: int | None = None
    """Cap on the alerts that it alone raises in an hour of event time; None: there is none."""
    max_hit_rate: float | None = None
    """Cap on the share of an hour's transactions that it hits."""

    @property
    def is_active(self) -> bool:
        """True if it acts."""
        return self.state == "active"

    @property
    def is_current(self) -> bool:
        """True for the version that acts, or has acted until it was stopped; False for one on its way."""
        return self.state in ("active", "stopped")

    @property
    def expression(self) -> str:
        """The condition as SQL, in one canonical form."""
        return text_of(condition_of(self))

    @property
    def meaning(self) -> tuple[Any, ...]:
        """All but its state: equal for versions that say the same."""
        caps = self.max_alerts_per_hour, self.max_hit_rate
        return self.code, self.owner, self.reason, self.severity, self.action, self.tree, caps


class PolicyRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule in a policy of an earlier release, until ``fraud-pipeline rules adopt`` moves it."""

    code: str
    feature: str
    op: str
    value: float
    sentence: str

    def adopted(self, owner: str, code: str) -> Rule:
        """Return the active rule that does the same; raises `ModelError` where it compares no feature."""
        data = [_SIGNS.get(self.op, self.op), ["field", self.feature], ["number", self.value]]
        try:
            condition = check_tree({"grammar": 1, "tree": data}, FIELDS)
        except ExpressionError as error:
            raise ModelError(f"rule {self.code!r}: {error}") from error
        reason = CONTROL.sub(" ", self.sentence)[:LONGEST_SENTENCE].strip() or f"Rule {code}."
        return Rule(
            code=code, owner=owner, reason=reason, severity="medium", action="alert", state="active",
            tree=condition.data(),
        )  # fmt: skip


def adopted(olds: Iterable[PolicyRule], owner: str) -> list[Rule]:
    """Return the active rules that do what those of a policy do, each with a code that a set can have."""
    found: dict[str, Rule] = {}
    for old in olds:
        code = "".join(mark if mark.isprintable() else " " for mark in old.code).strip().lstrip("- ")
        code = _SUFFIX.sub("-sql", _SUFFIX.sub("-sql", code)[:LONGEST_CODE].strip()).lstrip("- ") or "rule"
        codes = chain([code], (f"{code[: LONGEST_CODE - 4]}-{number}" for number in count(2)))
        code = next(each for each in codes if each not in found)
        found[code] = old.adopted(owner, code)
    return [*found.values()]


class _Payload(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    rules: tuple[Rule, ...]


_PAYLOAD: Final = msgspec.json.Decoder(_Payload)


class RuleSet:
    """The rules of a cluster.

    Args:
        rules: At most `MOST_RULES`; of one code at most one that is current, and one that is not.

    Raises:
        ModelError: A rule cannot be used.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        content = _Payload(kind=RULES, rules=tuple(sorted(rules, key=lambda rule: (rule.code, rule.state))))
        self._load(content, encode_payload(content))

    @classmethod
    def from_payload(cls, payload: bytes) -> "RuleSet":
        """Read a set; raises `ModelError` when it is damaged, or reads what is not declared here."""
        content = decode_payload(payload, _PAYLOAD, "a set of rules", RULES)
        made = cls.__new__(cls)
        made._load(content, bytes(payload))
        return made

    def _load(self, content: _Payload, payload: bytes) -> None:
        _check(content.rules)
        self.rules, self.payload, self.digest = content.rules, payload, payload_digest(payload)
        self.version = self.digest[:VERSION_DIGITS]
        self._rank(content.rules)
        if self.program.steps > MOST_STEPS:
            raise ModelError(f"the rules have {self.program.steps:,} parts, and may have {MOST_STEPS:,}: retire some")

    def _rank(self, rules: Iterable[Rule]) -> None:
        evaluated = [rule for rule in rules if rule.state != "draft"]
        self.evaluated = tuple(sorted(evaluated, key=_rank))
        """Active rules that alert, active ones that tag, then those in shadow; the most severe first."""
        conditions = [condition_of(rule) for rule in self.evaluated]
        self.program = RuleProgram(conditions, FIELDS)
        self.alerting = sum(rule.is_active and rule.action == "alert" for rule in self.evaluated)
        """Number of the first ones that alert."""
        self.active = sum(rule.is_active for rule in self.evaluated)
        self.texts = tuple(sorted(frozenset().union(*map(fields_in, conditions)) & TEXTS))
        """Names of the texts that they read."""

    def to_payload(self) -> bytes:
        """The set as one JSON object; ``digest`` is its SHA-256."""
        return self.payload

    def with_rules(self, *rules: Rule) -> "RuleSet":
        """Return a set with some rules, in place of those of their codes that act, or do not act, as they do."""
        taken = {(rule.code, rule.is_current) for rule in rules}
        return RuleSet([*(rule for rule in self.rules if (rule.code, rule.is_current) not in taken), *rules])

    def without(self, code: str, *, active: bool = True, candidate: bool = True) -> "RuleSet":
        """Return a set without the current version of a rule, or its candidate, or both."""
        drops = {True: active, False: candidate}
        return RuleSet(rule for rule in self.rules if rule.code != code or not drops[rule.is_current])

    def find(self, code: str, *, active: bool) -> Rule | None:
        """Return the current version of a rule, active or stopped, or its candidate."""
        return next((rule for rule in self.rules if (rule.code, rule.is_current) == (code, active)), None)

    def hits(self, read: Read, n: int) -> NDArray[np.object_]:
        """Return the numbers of the rules in ``evaluated`` that hit each of n rows, ascending; see `RuleProgram`."""
        found = no_hits(n)
        if self.evaluated:
            # By rule, so that the numbers of a row ascend; NumPy takes five times as long over two dimensions.
            numbers, rows = np.divmod(np.flatnonzero(self.program.hits(read, n)), n)
            for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                found[row] = (*found[row], number)
        return found

    def alerts(self, hits: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Return which rows an active rule alerts on, shape (n,)."""
        alerting = self.alerting
        return np.fromiter((bool(numbers) and numbers[0] < alerting for numbers in hits), np.bool_, len(hits))

    def named(self, numbers: tuple[int, ...]) -> tuple[list[str], list[str]]:
        """Return the codes of hits, at most `MOST_HITS`: those of active rules, and those of rules in shadow."""
        codes = [self.code(number) for number in numbers[:MOST_HITS]]
        active = sum(number < self.active for number in numbers[:MOST_HITS])
        return codes[:active], codes[active:]

    def code(self, number: int) -> str:
        """Return the code of a hit."""
        return self.evaluated[number % len(self.evaluated)].code

    def capped(self, numbers: tuple[int, ...], stopped: Iterable[int]) -> tuple[int, ...]:
        """Return hits of which some raise nothing, as if their rules were in shadow.

        The number of such a hit is higher by that of all rules, so that it follows all others.
        """
        stopped = set(stopped)
        return tuple(sorted(number + len(self.evaluated) * (number in stopped) for number in numbers))


def reader(
    text: Callable[[str], Texts],
    score: Any,
    log_odds: Callable[[int], Any],
    feature: Callable[[int], Any],
    listed: Callable[[Node], Any],
) -> Read:
    """Return what reads the columns of n transactions by the names in `FIELDS`.

    Args:
        text: Returns a column of texts by its name.
        score: The blend's probabilities, shape (n,).
        log_odds: Returns the log-odds of a model by its number in `KINDS`, shape (n,).
        feature: Returns a feature by its number in `FEATURES`, shape (n,).
        listed: Returns the truth of a test of a list, shape (n,): 1, 0, or NaN where it is unknown.
    """

    def read(name: Any) -> Any:
        if isinstance(name, tuple):
            return listed(name)
        if name in TEXTS:
            return text(name)
        if name in SCORES:
            return score if name == SCORES[0] else sigmoid(log_odds(SCORES.index(name) - 1))
        return feature(COLUMNS[name])

    return read


def no_hits(n: int) -> NDArray[np.object_]:
    """Return the hits of n rows that no rule hits."""
    found = np.empty(n, np.object_)
    found.fill(())
    return found


@lru_cache(8)
def joined(rules: RuleSet, olds: tuple[PolicyRule, ...]) -> RuleSet:
    """Return a set that evaluates rules of a policy too, but for those of a code that it has itself."""
    own = {rule.code for rule in rules.rules if rule.is_current}
    both = RuleSet.from_payload(rules.payload)
    both._rank([*rules.rules, *(rule for rule in adopted(olds, "policy") if rule.code not in own)])
    return both


def condition_of(rule: Rule) -> Condition:
    """Return the condition of a rule; raises `ModelError` where it reads what is not declared here."""
    try:
        return check_tree(rule.tree, FIELDS, lists=True)
    except ExpressionError as error:
        raise ModelError(f"rule {rule.code!r}: {error}") from error


def lists_read(rules: Iterable[Rule]) -> frozenset[tuple[str, str]]:
    """Return the names of the lists that rules read, each with the field that they look for there."""
    return list_fields_in(map(condition_of, rules))


def names_read(payload: bytes) -> set[str]:
    """Return the declared features and fields that a set reads, whatever is declared here; raises `ModelError`."""
    found: set[str] = set()
    rest: list[Any] = [rule.tree.get("tree") for rule in decode_payload(payload, _PAYLOAD, "a set of rules").rules]
    while rest:
        if isinstance(node := rest.pop(), list):
            rest += node[1:]
            if node[:1] == ["field"]:
                found.update(name for name in node[1:] if isinstance(name, str))
    return found - {*SCORES, *CONTRACT_FIELDS} | (found & {"hour", "weekday"})


def _rank(rule: Rule) -> tuple[bool, bool, int, str]:
    return not rule.is_active, rule.action != "alert", -_SEVERITIES.index(rule.severity), rule.code


def _check(rules: tuple[Rule, ...]) -> None:
    if len(rules) > MOST_RULES:
        raise ModelError(f"a set has at most {MOST_RULES} rules, not {len(rules)}")
    seen: set[tuple[str, bool]] = set()
    for rule in rules:
        if not rule.code.isprintable() or not 0 < len(rule.code) <= LONGEST_CODE or rule.code != rule.code.strip():
            raise ModelError(f"the code of a rule has 1 to {LONGEST_CODE} characters on one line, not {rule.code!r}")
        if rule.code.endswith(FILE_SUFFIX) or rule.code.startswith("-"):
            raise ModelError(f"the code {rule.code!r} would be taken for a file or an option: give it another one")
        for name, text in (("owner", rule.owner), ("reason", rule.reason)):
            if not text.strip() or len(text) > LONGEST_SENTENCE:
                raise ModelError(f"rule {rule.code!r} needs its {name}, in at most {LONGEST_SENTENCE:,} characters")
            if CONTROL.search(text):
                raise ModelError(f"the {name} of rule {rule.code!r} has a control character: write it on one line")
        if (rule.code, rule.is_current) in seen:
            raise ModelError(f"two rules have the code {rule.code!r}; give one of them another")
        seen.add((rule.code, rule.is_current))
        if (rule.max_alerts_per_hour or 1) < 1 or not 0 < (rule.max_hit_rate or 1) <= 1:
            raise ModelError(f"rule {rule.code!r}: a cap is at least 1 alert an hour, or a hit rate of at most 1")
        condition_of(rule)


NO_RULES: Final = RuleSet()
"""What is active until a set is: decisions name none."""
NO_RULES.version = ""
