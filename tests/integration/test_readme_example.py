"""The README's program is run as it stands, against a worker."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pipeline.settings import Settings
from schemas.messages import Versions
from tests.helpers.topics import Cluster, Starter
from tests.helpers.worker import ROOT, inherited_environment

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = 14
"""A program of more is no longer a first look."""


def program() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(code)


def test_the_program_writes_a_transaction_and_prints_its_decision(
    kafka_settings: Settings, start: Starter, tmp_path: Path
) -> None:
    # The names of the topics stand in the program; nothing else of this session writes to topics without a prefix.
    cluster = Cluster(kafka_settings.model_copy(update={"topic_prefix": ""}))
    cluster.publish()
    start(cluster.settings)
    environment = {**inherited_environment(), "KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap}
    code = tmp_path / "program.py"
    code.write_text(program(), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, code], check=False, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr
    (decision,) = cluster.decisions()
    versions = msgspec.to_builtins(decision.versions)
    assert run.stdout == f"{decision.action} {round(decision.score, 4)} {versions}\n"
    assert (decision.transaction_id, decision.card_id) == ("t-1", "c-17")


def test_the_program_is_short_and_its_output_is_shown() -> None:
    code = [line for line in program().splitlines() if line]
    assert len(code) <= LINES
    shown = README.partition(program())[2].partition("```text\n")[2].partition("```")[0].splitlines()
    versions = ast.literal_eval(shown[0].partition("{")[1] + "".join([shown[0].partition("{")[2], *shown[1:]]))
    assert versions.keys() == set(Versions.__struct_fields__)
