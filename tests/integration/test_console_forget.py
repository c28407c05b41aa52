"""A card that is forgotten: what people wrote about it comes back with no file that is made anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.console import case_pages, queue_pages
from pipeline.console.actions import CaseActions
from pipeline.console.presentation import case_url
from pipeline.console.store import CaseStore
from pipeline.protection.tokens import Tokeniser
from pipeline.settings import Settings
from tests.helpers.case_topics import alert_of, console, decision_of, event_of, label_of, publish
from tests.helpers.case_views import Answers
from tests.helpers.consoles import served, stand_in_parts
from tests.helpers.topics import Cluster, command
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.broker

CARD = "4000001234567899"
NOTE, ANSWER, OTHERS = "Dana Scully, 555-0147", "her husband Fox paid", "calls from 555-0199"


@pytest.fixture
def settings(cluster: Cluster, tmp_path: Path) -> Settings:
    secret = tmp_path / "secret"
    secret.write_text("s" * 64)
    secret.chmod(0o600)
    return cluster.settings.model_copy(update={"token_secret_file": secret})


@contextmanager
def desk(settings: Settings, path: Path) -> Iterator[tuple[CaseStore, CaseActions]]:
    assert settings.kafka_bootstrap_servers is not None
    with console(settings, path) as (store, _):
        yield store, CaseActions(settings.kafka_bootstrap_servers, settings, store, path.stem)


def holds(path: Path, text: str) -> bool:
    return any(text.encode() in file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def pages(store: CaseStore, directory: Path, case_id: str) -> dict[str, tuple[int, str]]:
    answers = Answers()
    parts = stand_in_parts(directory, store=store, explainer=answers, status=answers)
    paths = ("/", "/?state=closed", case_url(case_id), case_url(case_id, "/export.html"))
    with served(parts, routes=[*queue_pages.ROUTES, *case_pages.ROUTES]) as running:
        client = running.signed_in("supervisor")
        return {path: (found.status, found.text) for path in paths for found in [client.get(path)]}


def is_gone(store: CaseStore, case_id: str) -> bool:
    try:
        store.case(case_id, 0)
    except KeyError:
        return True
    return False


def test_notes_of_a_forgotten_card_come_back_with_no_file_that_is_made_anew(settings: Settings, tmp_path: Path) -> None:
    token = Tokeniser.from_settings(settings).token("card_id", CARD)
    case_id = f"{token}-1"
    alert = alert_of(1, card_id=token, case_id=case_id)
    other = alert_of(2)
    publish(settings, alert, decision_of(alert), other, decision_of(other), label_of(alert, note=OTHERS))
    # The console's own file: `forget` looks for it in the data directory. The other one is on another machine.
    own, elsewhere = settings.data_dir / "console.sqlite", tmp_path / "elsewhere.sqlite"
    with desk(settings, elsewhere) as (followed, _):
        with desk(settings, own) as (store, actions):
            actions.note(case_id, "ann", "n1", NOTE)
            actions.label(case_id, "ann", "n2", "fraud", [], ANSWER)
            actions.note("case-2", "ann", "n3", "stays")
            assert all(text in pages(store, tmp_path / "before", case_id)[case_url(case_id)][1] for text in (NOTE,))
        assert all(holds(own, text) for text in (NOTE, ANSWER, OTHERS))
        found = command(settings, "forget", CARD)
        assert found.exit_code == 0, found.output
        assert token not in found.output
        eventually(lambda: is_gone(followed, case_id))
        # A note that was under way, and an alert of a transaction that was.
        late = alert_of(3, card_id=token, case_id=case_id)
        publish(settings, event_of(alert, "noted", note=NOTE), late, decision_of(late), label_of(alert, note=OTHERS))
        publish(settings, event_of(other, "noted", event_id="n4", note="the last"))
        eventually(lambda: followed.event("n4") is not None and is_gone(followed, case_id))
    for path in (own, elsewhere, tmp_path / "anew.sqlite"):
        if path == own:
            for file in path.parent.glob("console.sqlite*"):
                file.unlink()
        with desk(settings, path) as (store, _):
            eventually(lambda: store.event("n4") is not None)
            assert is_gone(store, case_id)
            shown = pages(store, tmp_path / f"pages-{path.stem}", case_id)
            assert (shown["/"][0], shown[case_url(case_id)][0]) == (200, 404)
            assert not any(token in text or NOTE in text for _, text in shown.values())
            assert "card-2" in shown["/"][1]
            assert [entry.event.note for entry in store.case("case-2", 0).history] == ["stays", "the last"]
        assert not any(holds(path, text) for text in (NOTE, ANSWER, OTHERS))
