"""Bounds: what they may say, what a run gives for them, and how a failure is told."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.broker.local import read_json
from tests.benchmarks.bounds import Bound, Verdict, check, failures, read_bounds
from tests.benchmarks.docs import FIGURES

FASTER = Bound("a to b", ("part", "a"), "higher", goal=2.0, over=("part", "b"), limit=1.0)
SLOWER = Bound("a to b", ("part", "a"), "lower", goal=1.0, over=("part", "b"), limit=3.0)
SHOWN = Bound("a", ("part", "a"), "lower", goal=15.0)


@pytest.mark.parametrize(
    ("bound", "part", "found", "message"),
    [
        (FASTER, {"a": 4.0, "b": 2.0}, Verdict.MET, None),
        (FASTER, {"a": 3.9, "b": 2.0}, Verdict.KEPT, None),
        (FASTER, {"a": 2.0, "b": 2.0}, Verdict.KEPT, None),
        (FASTER, {"a": 1.5, "b": 2.0}, Verdict.FAILED, "a to b: 0.75, which is 25% below the limit of 1"),
        (SLOWER, {"a": 1.0, "b": 1.0}, Verdict.MET, None),
        (SLOWER, {"a": 3.0, "b": 1.0}, Verdict.KEPT, None),
        (SLOWER, {"a": 3.75, "b": 1.0}, Verdict.FAILED, "a to b: 3.75, which is 25% above the limit of 3"),
        # What was left out fails nothing, and what gave no value does.
        (FASTER, {"a": 1.0}, Verdict.UNMEASURED, None),
        (FASTER, {"a": None, "b": 1.0}, Verdict.FAILED, "a to b: the run has no such value; look at what it says"),
        (SHOWN, {"a": 15.0}, Verdict.MET, None),
        (SHOWN, {"a": 99.0}, Verdict.MISSED, None),
        (SHOWN, {"a": None}, Verdict.MISSED, None),
    ],
)
def test_a_figure_is_held_to_goal_and_limit(
    bound: Bound, part: dict[str, Any], found: Verdict, message: str | None
) -> None:
    outcomes = check({"part": part}, [bound])
    assert outcomes[0].verdict is found
    assert [text[: len(message or "")] for text in failures(outcomes)] == ([] if message is None else [message])
    assert check({}, [bound])[0].verdict is Verdict.UNMEASURED


def test_a_row_is_picked_by_its_values() -> None:
    rows = [{"mode": "x", "rate": 1, "ms": 7.0}, {"mode": "x", "rate": 2, "ms": 9.0}]
    bound = Bound("ms", ("part", "rows", {"mode": "x", "rate": 2}, "ms"), "lower", goal=8.0)
    assert check({"part": {"rows": rows}}, [bound])[0].value == 9.0
    assert check({"part": {"rows": rows[:1]}}, [bound])[0].verdict is Verdict.UNMEASURED


def test_every_bound_of_the_file_finds_its_value() -> None:
    bounds = read_bounds()
    assert len({bound.name for bound in bounds}) == len(bounds)
    assert not [it for it in check(read_json(FIGURES), bounds) if it.verdict is Verdict.UNMEASURED]


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
