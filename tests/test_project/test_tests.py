"""What holds for all tests: none fails because of time, and none is skipped that an installation could run."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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
