"""The proof after a run: all checks, on logs that were read as any program outside would read them.

Shares no code with the kernel: the arithmetic is written again from the documents, features come from the slow
reference, LightGBM's scores from LightGBM itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tests.chaos import check_examples, check_features, check_hostile, check_records, check_scores
from tests.chaos.records import Logs, Sent
from tests.chaos.run import Check, Rules, Run

CHECKS: tuple[Callable[[Run], Check], ...] = (
    check_records.inputs_are_the_ledger,
    check_records.misplaced_are_rerouted,
    check_records.labels_are_accepted_once,
    check_records.progress_covers_every_input,
    check_records.transactions_are_profiled_once,
    check_records.decisions_are_one_to_one,
    check_records.alerts_are_one_to_one,
    check_records.dead_letters_are_complete,
    check_hostile.hostile_records_change_nothing,
    check_hostile.quarantines_are_of_hostile_records,
    check_features.features_stand_beside_decisions,
    check_features.card_features_travel_unchanged,
    check_features.features_equal_the_reference,
    check_features.cases_follow_from_the_log,
    check_scores.scores_are_reproduced,
    check_scores.weights_are_a_fresh_replay,
    check_examples.labels_are_passed_on,
    check_examples.examples_are_consistent,
)

WITH_TIME = (
    "accepted_again",
    "too_late",
    "labels_too_late",
    "not_sampled",
    "corrections",
    "presumed",
    "labels_without_transaction",
    "forgotten",
    "decisions_forgotten",
)
"""What only comes with enough event time: `tests.chaos.evidence` asks long runs for it."""


def check_all(
    logs: Logs, ledger: Sequence[Sent], rules: Rules, checks: Sequence[Callable[[Run], Check]] = CHECKS
) -> list[Check]:
    """Every check, in order. One that fails for what it reads counts as a difference, and the others go on."""
    run = Run(logs, ledger, rules)
    results = []
    for check in checks:
        try:
            result = check(run)
            for what, count in result.compared.items():
                if count == 0 and what not in WITH_TIME:
                    result.differs(f"nothing was compared: no {what.replace('_', ' ')}")
            results.append(result)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            broken = Check(check.__name__)
            broken.differs(f"the records are not what their documents say: {type(error).__name__}: {error}")
            results.append(broken)
    return results


def differences(checks: Sequence[Check]) -> int:
    """In all checks together."""
    return sum(check.differences for check in checks)


def summary(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """As JSON can hold it."""
    return [
        {"check": c.name, "differences": c.differences, "compared": c.compared, "problems": c.problems} for c in checks
    ]
