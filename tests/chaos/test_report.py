"""What is kept and told of a run that failed."""

from pathlib import Path

import pytest

from tests.chaos import __main__ as program
from tests.chaos.report import as_text


def fail(name: str) -> None:
    """Be a run that leaves one file."""
    with program._kept(None) as (directory, _):
        (directory / name).touch()
        raise RuntimeError("no proof")


def test_a_run_that_fails_is_kept_until_the_next_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = tmp_path / "build" / "chaos-failed"
    monkeypatch.setattr(program, "FAILED", failed)
    for name in ("first", "second"):
        with pytest.raises(RuntimeError, match="no proof"):
            fail(name)
        assert [path.name for path in failed.iterdir()] == [name]
        assert capsys.readouterr().out.strip().endswith(f"{failed}.")
    with program._kept(None) as (directory, good):
        good.append(True)
    assert not directory.exists()
    assert [path.name for path in failed.iterdir()] == ["second"]
    assert capsys.readouterr().out == ""


def test_a_run_with_differences_is_kept_where_it_was_asked_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with program._kept(tmp_path / "keep") as (directory, _):
        (directory / "log").touch()
    assert [path.name for path in (tmp_path / "keep").iterdir()] == ["log"]
    assert str(tmp_path / "keep") in capsys.readouterr().out


def test_the_last_lines_of_a_worker_that_ended_by_itself_are_reported() -> None:
    ending = {"at_s": 17.5, "name": "w2", "code": 1, "after_pause": False, "log": "first\n" + "ended " * 30}
    result = {
        "options": {"seed": 1},
        "differences": 0,
        "failures": ["w2 ended by itself"],
        "faults": {"kill": 1},
        "sigkills_of_workers": 1,
        "recovery_s": {},
        "records": {"decisions": 7},
        "inputs": {"plain": 7},
        "snapshots": {"refused": {"damaged": 2}, "failed_while_full": 0},
        "workers_that_ended_by_themselves": [ending],
        "checks": [],
    }
    text = as_text(result)
    assert "w2 at 17.5 s (exit code 1):" in text
    assert text.count(" ended") > 20
    assert "refused: damaged 2" in text
    assert all(len(line) <= 80 for line in text.splitlines())
