"""Bounds: what they may say, what a run gives for them, and how a failure is told."""

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.bounds import Bound, Verdict, check, failures, read_bounds
from tests.benchmarks.example import example

FASTER = Bound("a to b", ("part", "a"), "higher", goal=2.0, over=("part", "b"), limit=1.0)


def verdict(bound: Bound, **part: Any) -> Verdict:
    return check({"part": part}, [bound])[0].verdict


@pytest.mark.parametrize(
    ("a", "found"), [(4.0, Verdict.MET), (3.9, Verdict.KEPT), (2.0, Verdict.KEPT), (1.9, Verdict.FAILED)]
)
def test_a_ratio_is_held_to_goal_and_limit(a: float, found: Verdict) -> None:
    assert verdict(FASTER, a=a, b=2.0) is found


@pytest.mark.parametrize(("a", "found"), [(1.0, Verdict.MET), (3.0, Verdict.KEPT), (3.1, Verdict.FAILED)])
def test_less_may_be_better(a: float, found: Verdict) -> None:
    bound = Bound("a to b", ("part", "a"), "lower", goal=1.0, over=("part", "b"), limit=3.0)
    assert verdict(bound, a=a, b=1.0) is found


def test_a_failure_says_by_how_much() -> None:
    (message,) = failures(check({"part": {"a": 1.5, "b": 2.0}}, [FASTER]))
    assert message == "a to b: 0.75, which is 25% below the limit of 1"
    slower = Bound("ms to ms", ("part", "a"), "lower", goal=0.5, over=("part", "b"), limit=0.6)
    assert "25% above the limit of 0.6" in failures(check({"part": {"a": 1.5, "b": 2.0}}, [slower]))[0]


def test_what_was_left_out_fails_nothing_and_what_gave_no_value_does() -> None:
    assert verdict(FASTER, a=1.0) is Verdict.UNMEASURED
    assert check({}, [FASTER])[0].verdict is Verdict.UNMEASURED
    found = check({"part": {"a": None, "b": 1.0}}, [FASTER])
    assert found[0].verdict is Verdict.FAILED
    assert "no such value" in failures(found)[0]


def test_a_goal_without_a_limit_fails_nothing() -> None:
    bound = Bound("a", ("part", "a"), "lower", goal=15.0)
    assert [verdict(bound, a=a) for a in (15.0, 99.0, None)] == [Verdict.MET, Verdict.MISSED, Verdict.MISSED]
    assert failures(check({"part": {"a": 99.0}}, [bound])) == []


def test_a_row_is_picked_by_its_values() -> None:
    rows = [{"mode": "x", "rate": 1, "ms": 7.0}, {"mode": "x", "rate": 2, "ms": 9.0}]
    bound = Bound("ms", ("part", "rows", {"mode": "x", "rate": 2}, "ms"), "lower", goal=8.0)
    assert check({"part": {"rows": rows}}, [bound])[0].value == 9.0
    assert check({"part": {"rows": rows[:1]}}, [bound])[0].verdict is Verdict.UNMEASURED


def test_every_bound_of_the_file_finds_its_value() -> None:
    bounds = read_bounds()
    assert len({bound.name for bound in bounds}) == len(bounds)
    unmeasured = [bound.bound.name for bound in check(example(), bounds) if bound.verdict is Verdict.UNMEASURED]
    assert unmeasured == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('better = "higher"\ngoal = 2.0\nlimit = 1.0', "only a ratio may have a limit"),
        ('over = ["other", "a"]\nbetter = "higher"\ngoal = 2.0\nlimit = 1.0', "from one part"),
        ('over = ["part", "b"]\nbetter = "lower"\ngoal = 2.0\nlimit = 1.0', "worse than the limit"),
        ('over = ["part", "b"]\nbetter = "larger"\ngoal = 2.0\nlimit = 1.0', "write higher or lower"),
    ],
)
def test_a_bound_that_means_nothing_elsewhere_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bounds.toml"
    path.write_text(f'[[bound]]\nname = "n"\nvalue = ["part", "a"]\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_bounds(path)
