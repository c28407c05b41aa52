"""The programs of the pages are run, here those without a broker, and all calls of ``fraud-pipeline`` are checked."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pandas as pd
import pytest

from pipeline.history.files import HANDBOOK
from pipeline.models.registry import LIGHTGBM, Registry
from pipeline.settings import Settings
from schemas.topics import DECISIONS
from tests.helpers.backtests import result
from tests.helpers.documents import ROOT, fenced
from tests.helpers.exported import export
from tests.helpers.pages import (
    COMPARED,
    NOT_RUN,
    PAGES,
    Stage,
    check_call,
    commands,
    entry,
    fraud_pipeline_calls,
    programs,
)
from tests.integration.test_page_programs_of_a_cluster import SCENES as OF_A_CLUSTER
from tests.test_project.test_notebook import PAGES as DOCUMENTS

ELSEWHERE = {
    "README.md": ("tests/integration/test_readme_example.py", {"python", "text"}),
    "docs/webhook.md": ("tests/integration/test_webhook.py", {"python"}),
    "docs/export.md": ("tests/unit/exports/test_export_features.py", {"python"}),
    "examples/faust-agent.md": ("tests/integration/test_faust_example.py", {"python", "console"}),
    "examples/own-features.md": ("tests/test_project/test_own_features_page.py", {"python", "text"}),
    **dict.fromkeys(DOCUMENTS, ("tests/test_project/test_notebook.py", {"python", "text"})),
}
"""Pages whose programs have a test of their own: the test, and the languages that it runs all blocks of."""


def report(stage: Stage) -> None:
    stage.names["result"] = result()


def backtest(stage: Stage) -> None:
    stage.call("simulate transactions.parquet --days 140 --cards 100 --merchants 200 --seed 0")
    rows = pd.read_parquet(stage.directory / "transactions.parquet", columns=[*HANDBOOK])
    rows["event_time"] = rows["event_time"].dt.tz_localize(None)
    rows.rename(columns=HANDBOOK).to_parquet(stage.directory / "handbook.parquet")
    stage.call("train transactions.parquet --known-before 2018-07-01 --trees 20 --budget-per-day 100 --force")
    (entry,) = Registry(Settings().registry_path).entries(LIGHTGBM)
    stage.words["81d04e6f22aa"] = entry.version
    stage.also = ("$ fraud-pipeline backtest transactions.parquet --from 2018-07-08",)
    stage.figures = True
    decision = json.loads((ROOT / "schemas/golden/v1/decision.json").read_bytes())
    (stage.directory / "compared").mkdir()
    for topic, action in (("decisions", "allow"), ("reprocess-candidate", "alert")):
        export(stage.directory, DECISIONS, [json.dumps({**decision, "action": action}).encode()])
        (stage.directory / "decisions").rename(stage.directory / "compared" / topic)


def protection(stage: Stage) -> None:
    secret = stage.directory / "tokens.secret"
    secret.write_text("s" * 64, encoding="utf-8")
    secret.chmod(0o600)
    stage.set("FRAUD_PIPELINE_TOKEN_SECRET_FILE", str(secret))
    stage.set("FRAUD_PIPELINE_RETENTION_DAYS", '{"transactions": 200}')
    # The number in the page's program.
    stage.typed = "4000001234567899\n"


def security(stage: Stage) -> None:
    """Count the rules, which another test makes on a cluster with an authorizer."""
    stage.set("FRAUD_PIPELINE_LABEL_TOPICS", '{"labels": ["analyst", "audit"], "chargebacks": ["chargeback"]}')
    (block,) = [item for item in programs(stage.page) if "--apply" in item.content]
    (command,) = commands(block)
    printed = stage.call(command.line.removeprefix("fraud-pipeline ").removesuffix("--apply"))
    assert command.shown.startswith(f"{len(printed.splitlines())} access rules created")


def console(stage: Stage) -> None:
    stage.set("FRAUD_PIPELINE_DATA_DIR", str(stage.directory / "data"))
    stage.typed = "correct horse battery\n" * 2
    stage.also = ("$ fraud-pipeline console account add dana --role analyst\n",)


SCENES: dict[str, Callable[[Stage], None]] = {
    "docs/backtest-report.md": report,
    "docs/backtest.md": backtest,
    "docs/console.md": console,
    "docs/protection.md": protection,
    "docs/security.md": security,
}


@pytest.mark.parametrize("page", SCENES)
def test_programs_print_what_the_page_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(page, tmp_path, monkeypatch)
    SCENES[page](stage)
    assert stage.run() > 0


def test_every_program_of_every_page_is_run_or_says_why_not() -> None:
    found = [(page, block, entry(page, block)) for page in PAGES for block in programs(page)]
    elsewhere = {(page, language) for page, (_, languages) in ELSEWHERE.items() for language in languages}
    run = {(page, block.language) for page, block, key in found if key is None}
    assert {page for page, _ in run - elsewhere} <= {*SCENES, *OF_A_CLUSTER}, (
        "give the page a scene, or name its program in NOT_RUN with the reason"
    )
    assert {key for _, _, key in found} == {*NOT_RUN, *COMPARED, None}


def test_tests_that_compare_programs_of_their_own_are_there() -> None:
    for (page, beginning), module in COMPARED.items():
        assert f'shown("{page}", "{beginning}")' in (ROOT / module).read_text(encoding="utf-8")
    for page, (module, _) in ELSEWHERE.items():
        assert f'"{page}"' in (ROOT / module).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_the_page_calls_commands_with_options_that_they_have(page: str) -> None:
    for arguments in fraud_pipeline_calls(page):
        check_call(arguments)
    targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(make_targets(page)) <= {*targets}


def make_targets(page: str) -> Iterator[str]:
    for block in fenced((ROOT / page).read_text(encoding="utf-8"), "console", "sh"):
        yield from re.findall(r"^(?:\$ )?(?:\w+=\S+ )?make ([a-z-]+)", block.content, re.MULTILINE)


def test_a_wrong_call_is_found() -> None:
    for arguments in (["label", "--nobody", "x"], ["models", "promot"], ["nothing"]):
        with pytest.raises(click.UsageError):
            check_call(arguments)
