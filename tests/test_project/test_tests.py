"""What holds for all tests: none fails because of time, and none is skipped that an installation could run."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.limits import limit_s, near_limits
from tests.helpers.tools import tool

TESTS = Path(__file__).resolve().parents[1]
SKIPS = {
    "helpers/tools.py": "a program is missing, where CI is not set",
    "evaluation/test_published.py": "the Handbook's data are not in the repository",
    "chaos/test_load.py": "to mount a file system takes root's rights",
    "integration/test_broker.py": "another system than Linux",
}
"""Every file that may skip a test, and why nothing that can be installed would help."""


def sources() -> dict[str, str]:
    return {
        path.relative_to(TESTS).as_posix(): path.read_text(encoding="utf-8")
        for path in TESTS.rglob("*.py")
        if path != Path(__file__).resolve()
    }


def test_hypothesis_knows_no_deadline() -> None:
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check
    setting = re.compile(r"\b(deadline|suppress_health_check)\s*=|\bload_profile\(")
    assert [name for name, text in sources().items() if setting.search(text)] == ["conftest.py"]


def test_a_test_near_its_limit_is_named() -> None:
    limits_s = dict.fromkeys(("slow", "quick", "marked"), 600.0) | {"marked": 1_200.0}
    lines = list(near_limits({"slow": 201.0, "quick": 200.0, "marked": 399.0}, limits_s))
    assert lines == ["slow took 201 s of a limit of 600 s: raise it with pytest.mark.timeout"]


def test_no_limit_is_below_that_of_all_tests(request: pytest.FixtureRequest) -> None:
    everyones = float(request.config.getini("timeout"))
    marks = {name: re.findall(r"mark\.timeout\((\d+)\)", text) for name, text in sources().items()}
    assert {name for name, found in marks.items() if any(float(limit) < everyones for limit in found)} == set()
    assert limit_s(request.node) >= everyones


def test_only_these_files_skip_tests() -> None:
    skip = re.compile(r"pytest\.(skip|importorskip|xfail)\(|mark\.(skip|skipif|xfail)\b")
    assert {name for name, text in sources().items() if skip.search(text)} == SKIPS.keys()


def test_a_missing_program_fails_where_ci_is_set_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"no-such-program is not installed.*apt-get install its-package"):
        tool("no-such-program", "its-package")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="apt-get install its-package"):
        tool("no-such-program", "its-package")
