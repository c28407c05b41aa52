"""Actions of pages, as forms that anybody can write: who may withdraw what, and what a search looks for."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.console import case_pages, queue_pages
from pipeline.console.presentation import case_url
from pipeline.demo.figures import RunFigures
from pipeline.protection.tokens import CARD_ID, TokenKeys
from pipeline.settings import Settings
from tests.helpers.case_views import Answers, CasesInMemory, case_view
from tests.helpers.consoles import Client, RunningConsole, served, stand_in_parts

CASES = ("card-1-1730", "card-2-1730")
Serving = Callable[..., RunningConsole]


@pytest.fixture
def memory() -> CasesInMemory:
    return CasesInMemory([case_view(case_id, case_id[:6]) for case_id in CASES])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    secret = tmp_path / "secret"
    secret.write_text("0" * 64)
    secret.chmod(0o600)
    return Settings(data_dir=tmp_path, token_secret_file=secret)


@pytest.fixture
def console(tmp_path: Path, settings: Settings, memory: CasesInMemory) -> Iterator[RunningConsole]:
    answers = Answers()
    parts = stand_in_parts(tmp_path, settings=settings, store=memory, actions=memory, explainer=answers, status=answers)
    with served(parts, routes=[*queue_pages.ROUTES, *case_pages.ROUTES]) as running:
        yield running


def label(client: Client) -> None:
    fields = {"event_id": "ana-1", "outcome": "legitimate", "transaction": "t-0"}
    assert client.post(case_url(CASES[0], "/label"), fields).status == 303


def test_an_analyst_withdraws_nothing_of_others(console: RunningConsole, memory: CasesInMemory) -> None:
    ana, bob, eve = (
        console.signed_in("analyst", "ana"),
        console.signed_in("analyst", "bob"),
        console.signed_in("supervisor"),
    )
    label(ana)
    form = {"event_id": "second", "undoes": "ana-1"}
    answer = bob.post(case_url(CASES[0], "/undo"), form)
    assert answer.status == 403
    assert "ask a supervisor" in answer.text
    assert [kind for kind, _ in memory.calls] == ["closed"]
    assert eve.post(case_url(CASES[0], "/undo"), form).status == 303
    assert [kind for kind, _ in memory.calls] == ["closed", "undone"]


def test_a_bulk_close_says_how_many_it_closed(console: RunningConsole) -> None:
    client = console.signed_in("supervisor")
    fields = {"event_id": "e", "reason": "a test", "case": CASES[1]}
    assert "Closed 1 case." in client.post("/close", fields, HX_Request="true").text


def test_a_search_looks_for_the_token_of_a_card_and_logs_nothing_else(
    console: RunningConsole, settings: Settings, memory: CasesInMemory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline.console")
    number = "4000123412341234"
    with TokenKeys.from_settings(settings) as keys:
        keys.keys([(CARD_ID, number)])
        token = keys.token((CARD_ID, number))
    assert token is not None
    case = case_view("tokenised-1730", token)
    memory.cases[case.row.case_id] = case
    client = console.signed_in("analyst")
    assert "tokenised-1730" in client.get(f"/?state=any&q={number}").text
    assert "card-1-1730" in client.get("/?state=any&q=card-1").text, "what has no token is looked for as it is"
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert token in logged
    assert number not in logged


def test_a_run_goes_on_behind_records_that_are_no_messages() -> None:
    figures = RunFigures()
    figures.alert(b"{")
    figures.decision(b"{", 1.0)
    assert (figures.alerts, figures.decisions, figures.undecided) == (1, 1, 0)
