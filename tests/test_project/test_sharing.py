"""Processes that share tests run each of them, and none twice."""

import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from tests.helpers.sharing import LONGEST
from tests.helpers.waiting import TIMEOUT_S
from tests.helpers.worker import ROOT, inherited_environment

MODULES = 12
MODULE = """
import time
import pytest

@pytest.fixture(scope="module", autouse=True)
def once():
    open({log!r}, "a").write("{name} begins\\n")
    yield
    open({log!r}, "a").write("{name} ends\\n")

@pytest.mark.parametrize("number", range(3))
def test_something(number):
    time.sleep(0.01)
    assert (number, {name!r}) != (1, "test_7")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Modules in two folders, which tell when their fixture is made and torn down; one test of test_7 fails."""
    for number in range(MODULES):
        name = f"test_{number}"
        path = tmp_path / "tests" / f"folder_{number % 2}" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MODULE.format(log=str(tmp_path / "log"), name=name))
    # Or the settings of a project that this lies in would hold.
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def begun(project: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "tests.helpers.sharing", "-p", "no:cacheprovider"]
    return subprocess.Popen(
        [*command, "--share", "taken", *arguments, "tests"],
        cwd=project,
        env={**inherited_environment(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def outcomes(process: subprocess.Popen[str]) -> list[tuple[str, str]]:
    """What the process ran, as (test, outcome)."""
    output, _ = process.communicate(timeout=TIMEOUT_S)
    lines = [line.split() for line in output.splitlines() if line.startswith("tests/") and "::" in line]
    return [(line[0], line[1]) for line in lines]


def test_each_test_is_run_by_one_of_them(project: Path) -> None:
    processes = [begun(project) for _ in range(3)]
    ran = [outcomes(process) for process in processes]
    assert Counter(test for tests in ran for test, _ in tests) == {
        f"tests/folder_{number % 2}/test_{number}.py::test_something[{case}]": 1
        for number in range(MODULES)
        for case in range(3)
    }
    # Who had the test that fails says so, and nobody else.
    failed = [[test for test, outcome in tests if outcome == "FAILED"] for tests in ran]
    assert list(chain(*failed)) == ["tests/folder_1/test_7.py::test_something[1]"]
    assert [process.returncode for process in processes] == [int(bool(tests)) for tests in failed]
    # A module's tests are one process's.
    for tests in ran:
        assert all(count == 3 for count in Counter(test.partition("::")[0] for test, _ in tests).values())
    counter = Counter((project / "log").read_text().splitlines())
    assert counter == {f"test_{number} {what}": 1 for number in range(MODULES) for what in ("begins", "ends")}


def test_what_is_taken_already_is_left_to_whom_took_it(project: Path) -> None:
    (project / "taken").mkdir()
    for number in range(MODULES - 1):
        (project / "taken" / f"tests-folder_{number % 2}-test_{number}.py").touch()
    alone = begun(project)
    assert {test.partition("::")[0] for test, _ in outcomes(alone)} == {f"tests/folder_1/test_{MODULES - 1}.py"}
    nothing_left = begun(project)
    assert outcomes(nothing_left) == []
    assert (alone.returncode, nothing_left.returncode) == (0, 0)


def test_the_longest_modules_come_first(project: Path) -> None:
    first, second, *_ = LONGEST
    for name in (second, first):
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("def test_long():\n    pass\n")
    ran = list(dict.fromkeys(test.partition("::")[0] for test, _ in outcomes(begun(project))))
    assert (ran[:2], len(ran)) == ([first, second], MODULES + 2)


def test_the_longest_modules_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []


def test_tests_with_a_broker_come_first_or_last(project: Path) -> None:
    (project / "pytest.ini").write_text("[pytest]\nmarkers = broker: of this test\n")
    marked = "import pytest\n\n@pytest.mark.broker\ndef test_marked():\n    pass\n"
    (project / "tests" / "folder_0" / "test_marked.py").write_text(marked)
    first = outcomes(begun(project, "--broker-first", "--share", "other"))
    last = outcomes(begun(project))
    name = "tests/folder_0/test_marked.py::test_marked"
    assert [ran[0] for ran in (first[0], last[-1])] == [name, name]
    assert sorted(first) == sorted(last)
