"""The README's program is run as it stands, against a worker."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pipeline.settings import Settings
from tests.helpers.topics import Cluster, Starter
from tests.helpers.waiting import TIMEOUT_S
from tests.helpers.worker import ROOT, inherited_environment

pytestmark = pytest.mark.broker

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = 18
"""A program of more is no longer a first look."""
VARIES = re.compile(r"(?<=: ')[^']+(?=')|(?<=(?:allow|alert) )\S+")
"""Versions and scores."""


def program() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(code)


def shown() -> list[str]:
    """Lines that the page shows as the program's output, without what varies."""
    output = README.partition(program())[2].partition("```text\n")[2].partition("```")[0]
    return VARIES.sub("…", output).splitlines()


def test_the_program_writes_transactions_and_prints_their_decisions(
    kafka_settings: Settings, start: Starter, tmp_path: Path
) -> None:
    # The names of the topics stand in the program; nothing else of this session writes transactions without a prefix.
    cluster = Cluster(kafka_settings.model_copy(update={"topic_prefix": ""}))
    cluster.publish()
    start(cluster.settings)
    environment = {**inherited_environment(), "KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap}
    code = tmp_path / "program.py"
    code.write_text(program(), encoding="utf-8")
    # Twice: each run has transactions of its own.
    for runs in (1, 2):
        run = subprocess.run(
            [sys.executable, code],
            check=False, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        # The page's cluster has no rules, as a new one.
        lines = [VARIES.sub("…", line).replace(", 'rules': '…'", "") for line in run.stdout.splitlines()]
        assert sorted(lines) == sorted(shown())
        decisions = cluster.decisions()
        assert len(decisions) == 2 * runs
        printed = {
            f"{decision.transaction_id[33:]} {decision.action} {decision.score} "
            f"{msgspec.to_builtins(decision.versions)}"
            for decision in decisions
        }
        assert printed >= set(run.stdout.splitlines())


def test_the_program_is_short() -> None:
    assert len([line for line in program().splitlines() if line]) <= LINES
