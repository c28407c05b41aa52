"""The console's database and actions on real topics."""

import os
import random
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.broker import embedded_broker
from pipeline.console import actions
from pipeline.console.actions import MOST_WAITING, ActionPending, ActionRefused, CaseActions, ShownAlerts
from pipeline.console.queries import CaseSummary
from pipeline.console.reader import TopicsReader
from pipeline.console.store import CaseStore
from pipeline.console.views import CaseView, QueueFilter, QueueRow
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.errors import ClusterUnreachable
from pipeline.kafka.writers.producer import DeliveryFailed, TransactionalProducer
from pipeline.settings import Settings
from schemas.messages import Alert, CaseEvent, Label
from schemas.topics import CASE_EVENTS, LABELS
from tests.helpers.case_topics import KEY, NOON, alert_of, console, decision_of, event_of, label_of, publish, table_rows
from tests.helpers.topics import Cluster
from tests.helpers.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.broker

CLAIMS = int(os.environ.get("CONSOLE_CLAIMS", "60"))
"""Cases that each of two accounts claims at once."""
CUT_EVERY_S = 1.0


class Desk:
    """A console on the topics of a test, without its pages."""

    def __init__(self, settings: Settings, store: CaseStore, reader: TopicsReader, name: str) -> None:
        assert settings.kafka_bootstrap_servers is not None
        self.settings, self.store, self.reader = settings, store, reader
        self.actions = CaseActions(settings.kafka_bootstrap_servers, settings, store, name)

    def case(self, case_id: str = "case-1") -> CaseView:
        return self.store.case(case_id, time.time_ns() // 1_000)

    def add(self, *alerts: Alert) -> None:
        publish(self.settings, *alerts, *map(decision_of, alerts))
        eventually(lambda: all(self.has_read(each) for each in alerts))

    def rows(self) -> Sequence[QueueRow]:
        return self.store.queue(QueueFilter(), time.time_ns() // 1_000).rows

    def has_read(self, alert: Alert) -> bool:
        try:
            views = self.case(alert.case_id).alerts
        except KeyError:
            return False
        return any(view.alert.alert_id == alert.alert_id for view in views)

    def labelled(self) -> list[tuple[str, str, str]]:
        """Labels of the one transaction, oldest first."""
        labels = [view.label for view in self.store.labels_of("t1", "card-1")]
        return [(label.source, label.label, label.analyst or "") for label in labels]


@pytest.fixture(autouse=True)
def _long_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time to read back what was written."""
    monkeypatch.setattr("pipeline.console.actions.READ_BACK_S", TIMEOUT_S)


@pytest.fixture
def open_desk(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    with ExitStack() as stack:

        def opened(name: str = "one", **changes: object) -> Desk:
            settings = cluster.settings.model_copy(update=changes)
            found = console(settings, tmp_path / f"{name}.sqlite")
            return Desk(settings, *stack.enter_context(found), name)

        yield opened


def new_id() -> str:
    return uuid.uuid4().hex


def events(cluster: Cluster) -> list[CaseEvent]:
    return [msgspec.json.decode(record.value or b"", type=CaseEvent) for record in cluster.read(CASE_EVENTS)]


def test_a_deleted_file_is_made_again_from_the_topics(
    cluster: Cluster, open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = open_desk()
    for number in range(40):
        alert = alert_of(number, number // 2, selection="audit" if number % 6 == 0 else "score")
        desk.add(alert)
        if number % 4 == 1:
            desk.actions.label(alert.case_id, "ann", new_id(), "fraud", [])
    desk.actions.note("case-3", "bob", new_id(), "called")
    publish(cluster.settings, event_of(alert_of(999), "noted"), label_of(alert_of(5), source="chargeback"))
    eventually(lambda: desk.store.event(events(cluster)[-1].event_id) is not None)
    with console(cluster.settings, tmp_path / "anew.sqlite") as (anew, _):
        eventually(lambda: table_rows(anew) == table_rows(desk.store))
        assert anew.queue(QueueFilter(), 0).total == 10


def test_a_reader_goes_on_where_it_stopped(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "console.sqlite"
    publish(cluster.settings, alert_of(1))
    with console(cluster.settings, path) as (store, _):
        positions = store.positions()
        assert store.queue(QueueFilter(), 0).total == 1
    publish(cluster.settings, alert_of(2))
    changed: list[frozenset[str]] = []
    with console(cluster.settings, path, on_change=changed.append) as (store, _):
        assert store.queue(QueueFilter(), 0).total == 2
        # The reader says that it has caught up before it says what has changed.
        eventually(lambda: bool(changed))
        assert changed == [{"case-2"}]
        assert all(store.positions()[name] >= behind for name, behind in positions.items())


def test_a_label_closes_its_case_and_undoing_says_what_its_source_said_before(
    open_desk: Callable[..., Desk], cluster: Cluster
) -> None:
    desk = open_desk()
    desk.add(alert_of(1), alert_of(2, 1))
    publish(
        cluster.settings,
        label_of(alert_of(1), "legitimate", source="chargeback"),
        label_of(alert_of(1), "disputed", analyst="kim"),
    )
    eventually(lambda: len(desk.labelled()) == 2)
    desk.actions.claim("case-1", "ann", new_id())
    event_id = new_id()
    done = desk.actions.label("case-1", "ann", event_id, "fraud", ["t1"], "stolen")
    assert desk.actions.label("case-1", "ann", event_id, "fraud", ["t1"], "stolen") == done
    view = desk.case()
    assert (view.row.status, view.row.holder) == ("closed", None)
    known = [("chargeback", "legitimate", ""), ("analyst", "disputed", "kim")]
    assert sorted(desk.labelled()[:2]) == sorted(known)
    assert desk.labelled()[2:] == [("analyst", "fraud", "ann")]
    (label,) = [view.label for view in desk.store.labels_of("t1", "card-1") if view.holds]
    assert (label.note, label.alert_id, label.label_id) == ("stolen", "alert-1", *done.labels)
    with pytest.raises(ActionRefused, match="closed"):
        desk.actions.label("case-1", "bob", new_id(), "legitimate", [])
    undo_id = new_id()
    undone = desk.actions.withdraw("case-1", "ann", undo_id, event_id)
    assert desk.actions.withdraw("case-1", "ann", undo_id, event_id) == undone
    assert desk.labelled()[3:] == [("analyst", "disputed", "ann")]
    times = [view.label.labelled_at for view in desk.store.labels_of("t1", "card-1") if view.label.analyst == "ann"]
    assert times[0] < times[1]
    # The claim that the answer ended holds again.
    assert (desk.case().row.status, desk.case().row.alerts, desk.case().row.holder) == ("open", 2, "ann")
    with pytest.raises(ActionRefused, match="nothing to undo"):
        desk.actions.withdraw("case-1", "ann", new_id(), event_id)
    assert len(events(cluster)) == 3


def test_a_blind_case_is_answered_whole_and_is_seen_from_then_on(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.add(alert_of(1, selection="audit"), alert_of(2, 1))
    assert desk.case().row.blind
    with pytest.raises(ActionRefused, match="part of an audit"):
        desk.actions.label("case-1", "ann", new_id(), "fraud", ["t2"])
    with pytest.raises(ActionRefused, match="blind"):
        desk.actions.close(["case-1"], "eve", new_id(), "a test")
    event_id = new_id()
    desk.actions.label("case-1", "ann", event_id, "fraud", [])
    desk.actions.withdraw("case-1", "ann", new_id(), event_id)
    assert (desk.case().row.status, desk.case().row.blind) == ("open", False)


def test_a_form_counts_for_its_own_case_alone_and_few_actions_wait(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.add(alert_of(1), alert_of(2))
    event_id = new_id()
    desk.actions.note("case-1", "ann", event_id, "a note")
    with pytest.raises(ActionRefused, match="another case"):
        desk.actions.note("case-2", "ann", event_id, "a note")
    held = [desk.actions._waiting.acquire(blocking=False) for _ in range(MOST_WAITING)]
    assert all(held)
    with pytest.raises(ActionRefused, match="Many actions wait"):
        desk.actions.note("case-1", "ann", new_id(), "another one")


def test_undoing_says_unknown_where_nothing_was_known_and_a_newer_label_forbids_it(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk()
    desk.add(alert_of(1))
    # What a customer says is no answer of an analyst.
    publish(desk.settings, label_of(alert_of(1), "legitimate", source="customer"))
    eventually(lambda: len(desk.labelled()) == 1)
    first, second = new_id(), new_id()
    desk.actions.label("case-1", "ann", first, "fraud", [])
    desk.actions.withdraw("case-1", "ann", new_id(), first)
    assert desk.labelled()[1:] == [("analyst", "fraud", "ann"), ("analyst", "unknown", "ann")]
    desk.actions.label("case-1", "ann", second, "legitimate", [])
    newer = desk.store.labels_of("t1", "card-1")[-1].label.labelled_at + timedelta(milliseconds=1)
    publish(desk.settings, label_of(alert_of(1), "disputed", labelled_at=newer, analyst="kim"), at=newer)
    eventually(lambda: len(desk.labelled()) == 5)
    with pytest.raises(ActionRefused, match="kim has labelled transaction t1 since"):
        desk.actions.withdraw("case-1", "ann", new_id(), second)
    assert len(desk.labelled()) == 5


def test_labels_go_to_the_topic_of_their_source(cluster: Cluster, tmp_path: Path) -> None:
    topics = {"labels": ("analyst",), "audits": ("audit",)}
    settings = cluster.settings.model_copy(update={"label_topics": topics})
    ensure_topics(cluster.bootstrap, settings)
    with console(settings, tmp_path / "two.sqlite") as found:
        desk = Desk(settings, *found, "two")
        desk.add(alert_of(1, 1, selection="audit"), alert_of(2, 1))
        publish(settings, decision_of(alert_of(3, 1), selection=None, features=None))
        eventually(lambda: desk.store.transaction("t3", "card-1") is not None)
        desk.actions.label("case-1", "ann", new_id(), "fraud", ["t1", "t2", "t3"])
        where = {name: [view.topic for view in desk.store.labels_of(name, "card-1")] for name in ("t1", "t2", "t3")}
        assert where == {"t1": ["audits"], "t2": ["labels"], "t3": ["labels"]}
        desk.add(alert_of(4, 2))
        with pytest.raises(ActionRefused, match="no transaction t9"):
            desk.actions.label("case-2", "ann", new_id(), "fraud", ["t9"])
    nowhere = settings.model_copy(update={"label_topics": {"labels": ("chargeback",)}})
    with console(nowhere, tmp_path / "three.sqlite") as found:
        desk = Desk(nowhere, *found, "three")
        with pytest.raises(ActionRefused, match="cannot be written"):
            desk.actions.label("case-2", "ann", new_id(), "fraud", [])
        assert desk.case("case-2").row.status == "open"


def test_labels_bear_the_simulated_clock_of_the_topics(open_desk: Callable[..., Desk], cluster: Cluster) -> None:
    desk = open_desk()
    past = datetime(2018, 6, 1, tzinfo=UTC)
    desk.add(alert_of(1, at=past))
    first = new_id()
    desk.actions.label("case-1", "ann", first, "fraud", [])
    desk.actions.withdraw("case-1", "ann", new_id(), first)
    (said, undone) = desk.store.labels_of("t1", "card-1")
    assert said.label.labelled_at == past + timedelta(seconds=1)
    assert undone.label.labelled_at == said.label.labelled_at + timedelta(microseconds=1)
    assert {record.timestamp_ms // 1_000 for record in cluster.read(LABELS)} == {int(past.timestamp()) + 1}


def test_what_somebody_else_holds_cannot_be_answered(open_desk: Callable[..., Desk]) -> None:
    desk, other = open_desk(), open_desk("two")
    desk.add(alert_of(1), alert_of(2))
    claim_id = new_id()
    desk.actions.claim("case-1", "ann", claim_id)
    desk.actions.claim("case-1", "ann", claim_id)
    assert desk.case().row.holder == "ann"
    eventually(lambda: all(other.has_read(alert_of(number)) for number in (1, 2)))
    eventually(lambda: other.case().row.holder == "ann")
    with pytest.raises(ActionRefused, match="ann holds this case"):
        other.actions.claim("case-1", "bob", new_id())
    soon = datetime.now(UTC) + timedelta(hours=1)
    for call in (
        lambda: other.actions.label("case-1", "bob", new_id(), "fraud", []),
        lambda: other.actions.snooze("case-1", "bob", new_id(), soon),
        lambda: other.actions.withdraw("case-1", "bob", new_id(), claim_id),
    ):
        with pytest.raises(ActionRefused, match="ann holds this case"):
            call()
    done = other.actions.close(["case-1", "case-2"], "bob", bulk := new_id(), "a test of the bank")
    assert [event.case_id for event in done] == ["case-2"]
    assert other.actions.close(["case-1", "case-2"], "bob", bulk, "a test of the bank") == done
    other.actions.reopen("case-2", "bob", new_id())
    assert other.case("case-2").row.status == "open"
    other.actions.snooze("case-2", "bob", new_id(), soon)
    assert other.case("case-2").row.status == "snoozed"
    with pytest.raises(ActionRefused, match="passed"):
        other.actions.snooze("case-2", "bob", new_id(), NOON)
    with pytest.raises(ActionRefused, match="beyond"):
        other.actions.snooze("case-2", "bob", new_id(), NOON.replace(year=9999))
    with pytest.raises(ActionRefused, match="no such case"):
        other.actions.claim("case-9", "bob", new_id())
    with pytest.raises(ActionRefused, match="cannot be written"):
        other.actions.note("case-2", "bob", new_id(), "x" * 10_001)


def test_alerts_that_were_not_shown_stay_open(open_desk: Callable[..., Desk], cluster: Cluster) -> None:
    desk = open_desk()
    desk.add(alert_of(1), alert_of(3), alert_of(4), alert_of(6))
    shown = {row.case_id: ShownAlerts(row.alerts, row.last_raised_us) for row in desk.rows()}
    desk.add(alert_of(2, 1), alert_of(5, 4, at=NOON - timedelta(hours=1)))
    desk.actions.label("case-1", "ann", new_id(), "fraud", [], alerts=["alert-1", "alert-9"])
    view = desk.case()
    assert [(each.alert.alert_id, each.closed) for each in view.alerts] == [("alert-1", True), ("alert-2", False)]
    assert (view.row.status, view.row.alerts) == ("open", 1)
    assert desk.store.labels_of("t2", "card-1") == []
    with pytest.raises(ActionRefused, match="others have come"):
        desk.actions.label("case-1", "ann", new_id(), "fraud", ["t1"], alerts=["alert-1"])
    done = desk.actions.close(["case-1", "case-3", "case-4", "case-6"], "sue", new_id(), "a test", shown)
    # One alert was raised later than what was shown, one earlier but came later.
    assert [event.case_id for event in done] == ["case-3", "case-6"]
    with pytest.raises(ActionRefused, match="new alerts"):
        desk.actions.close(["case-1", "case-4"], "sue", new_id(), "a test", shown)
    assert [row.case_id for row in desk.rows()] == ["case-4", "case-1"]
    assert len(events(cluster)) == 3


def dying_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the connection die now and then when a transaction may or may not have been committed."""
    write, calls = TransactionalProducer.write, Counter[str]()

    def dying(self: TransactionalProducer, *arguments: object) -> None:
        calls["writes"] += 1
        turn = calls["writes"] % 30
        if turn == 7:
            raise DeliveryFailed("the connection died before the transaction")
        write(self, *arguments)  # type: ignore[arg-type]
        if turn == 19:
            raise DeliveryFailed("the connection died behind the commit")

    monkeypatch.setattr(TransactionalProducer, "write", dying)


def connections_to(bootstrap: str) -> list[socket.socket]:
    """Copies of this process's TCP connections to the broker, whoever holds them."""
    host, _, port = bootstrap.partition(":")
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not Path(f"/proc/self/fd/{name}").is_socket():
                continue
            copy = socket.socket(fileno=os.dup(int(name)))
            if copy.family == socket.AF_INET and copy.getpeername() == (host, int(port)):
                found.append(copy)
            else:
                copy.close()
    return found


@contextmanager
def cut_connections(bootstrap: str) -> Iterator[list[int]]:
    """Cut one connection to the broker after the other, chosen at random; the ports of those that were."""
    ended, cut, chance = threading.Event(), list[int](), random.Random(11)

    def work() -> None:
        while not ended.wait(chance.uniform(0.05, 2 * CUT_EVERY_S)):
            there = connections_to(bootstrap)
            for connection in chance.sample(there, min(1, len(there))):
                with suppress(OSError):
                    cut.append(connection.getsockname()[1])
                    connection.shutdown(socket.SHUT_RDWR)
            for connection in there:
                connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield cut
    finally:
        ended.set()
        thread.join()


@pytest.mark.timeout(7_200 if CLAIMS > 100 else 1_200)
@pytest.mark.parametrize("what_dies", ["writes", "connections"])
def test_two_consoles_give_no_case_twice_and_lose_none(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, what_dies: str
) -> None:
    desks = {"ann": open_desk("one"), "bob": open_desk("two")}
    times = {"event_time": NOON, "raised_at": NOON}
    alerts = [alert_of(n, selection="audit" if n % 20 == 0 else "score", **times) for n in range(2 * CLAIMS)]
    publish(desks["ann"].settings, *alerts, *map(decision_of, alerts))
    for desk in desks.values():
        eventually(lambda desk=desk: desk.store.queue(QueueFilter(), 0).total == 2 * CLAIMS)  # type: ignore[misc]
    given: dict[str, list[str | None]] = {name: [] for name in desks}
    again = Counter[str]()

    def work(name: str) -> None:
        for _ in range(CLAIMS):
            given[name].append(pressed_again(name, new_id()))

    def pressed_again(name: str, event_id: str) -> str | None:
        """Press N until the console says more than to press it again, as the page does with the same form."""
        while True:
            try:
                return desks[name].actions.claim_next(QueueFilter(), name, event_id)
            except (DeliveryFailed, ActionPending) as error:
                again[type(error).__name__] += 1

    with ExitStack() as stack:
        cut: list[int] = []
        if what_dies == "writes":
            dying_writes(monkeypatch)
        else:
            cut = stack.enter_context(cut_connections(str(desks["ann"].settings.kafka_bootstrap_servers)))
        threads = [threading.Thread(target=work, args=(name,)) for name in desks]
        began_s = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took_s = time.monotonic() - began_s
    print(f"{2 * CLAIMS} claims in {took_s:.0f} s, {len(cut)} connections cut, pressed again: {dict(again)}")
    assert bool(cut) == (what_dies == "connections")
    everything = [case_id for cases in given.values() for case_id in cases]
    assert Counter(everything) == Counter(f"case-{number}" for number in range(2 * CLAIMS))
    assert {name: len(cases) for name, cases in given.items()} == dict.fromkeys(desks, CLAIMS)
    assert desks["ann"].actions.claim_next(QueueFilter(), "ann", new_id()) is None


@pytest.mark.parametrize("error", [ClusterUnreachable("no broker answers"), KafkaException(KafkaError(-195))])
def test_brokers_that_do_not_say_what_became_of_an_action_are_asked_again(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It was an unexpected error, for which the page has no advice."""
    desk = open_desk()
    desk.add(alert_of(1))
    write, failures = TransactionalProducer.write, iter([DeliveryFailed("the connection died behind the commit")])

    def dying(self: TransactionalProducer, *arguments: object) -> None:
        write(self, *arguments)  # type: ignore[arg-type]
        if failure := next(failures, None):
            raise failure

    asked = Mock(side_effect=[error, DEFAULT], wraps=actions.readable_ends)
    monkeypatch.setattr(TransactionalProducer, "write", dying)
    monkeypatch.setattr(actions, "readable_ends", asked)
    desk.actions.claim("case-1", "ann", new_id())
    assert asked.call_count == 2
    assert [entry.event.kind for entry in desk.case().history] == ["claimed"]
    assert desk.case().row.holder == "ann"


def test_of_two_who_act_at_once_one_learns_that_the_other_was_first(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk()
    alerts = [alert_of(number) for number in range(1, 5)]
    desk.add(*alerts)
    write, answer_id, bulk_id = TransactionalProducer.write, new_id(), new_id()
    first = [
        event_of(alerts[0], "closed", "bob", alerts=["alert-1"]),
    ]

    def later(self: TransactionalProducer, *arguments: object) -> None:
        """Write once others have written what this console has not read when it looks at the case."""
        publish(desk.settings, *first)
        first.clear()
        write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TransactionalProducer, "write", later)
    for _ in range(2):
        with pytest.raises(ActionRefused, match=r"bob was a moment earlier\. The label stands"):
            desk.actions.label("case-1", "ann", answer_id, "fraud", [])
    assert desk.labelled() == [("analyst", "fraud", "ann")]
    assert desk.case().row.status == "closed"
    first.append(event_of(alerts[3], "claimed", "kim"))
    for _ in range(2):
        done = desk.actions.close(["case-3", "case-4"], "sue", bulk_id, "a test")
        assert [event.case_id for event in done] == ["case-3"]


def test_what_somebody_claims_meanwhile_is_not_snoozed(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk()
    desk.add(alert_of(1))
    write = TransactionalProducer.write

    def later(self: TransactionalProducer, *arguments: object) -> None:
        publish(desk.settings, event_of(alert_of(1), "claimed", "kim"))
        write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TransactionalProducer, "write", later)
    with pytest.raises(ActionRefused, match=r"kim was a moment earlier\. The case is"):
        desk.actions.snooze("case-1", "ann", new_id(), datetime.now(UTC) + timedelta(hours=1))
    assert (desk.case().row.status, desk.case().row.holder) == ("open", "kim")


def test_a_repeated_claim_of_the_next_case_gives_the_same_one(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    desk.add(alert_of(1), alert_of(2))
    event_id = new_id()
    first = desk.actions.claim_next(QueueFilter(), "ann", event_id)
    assert first == desk.actions.claim_next(QueueFilter(), "ann", event_id) == "case-2"
    assert desk.actions.claim_next(QueueFilter(), "ann", new_id()) == "case-1"


def test_a_case_that_cannot_be_claimed_is_passed_over(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk()
    desk.add(alert_of(1), alert_of(2))
    summary, event_id = desk.store.summary, new_id()

    def gone(case_id: str, now_us: int) -> CaseSummary:
        if case_id == "case-2":
            raise KeyError(case_id)
        return summary(case_id, now_us)

    with monkeypatch.context() as patched:
        patched.setattr(desk.store, "summary", gone)
        assert desk.actions.claim_next(QueueFilter(), "ann", event_id) == "case-1"
        assert desk.actions.claim_next(QueueFilter(), "ann", new_id()) is None
    # A repeat gives no second case, though the other one can be claimed now.
    assert desk.actions.claim_next(QueueFilter(), "ann", event_id) == "case-1"
    assert desk.actions.claim_next(QueueFilter(), "ann", new_id()) == "case-2"


def test_a_reader_says_when_no_broker_answers_and_goes_on_afterwards(tmp_path: Path) -> None:
    with embedded_broker(tmp_path / "kafka") as broker:
        settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers, data_dir=tmp_path / "data")
        ensure_topics(broker.bootstrap_servers, settings)
        publish(settings, alert_of(1))
        with console(settings, tmp_path / "console.sqlite") as (store, reader):
            broker.stop()
            eventually(lambda: "no broker answers" in (reader.failure_text or ""))
            assert store.case("case-1", 0).row.case_id == "case-1"
            broker.start()
            publish(settings, alert_of(2))
            eventually(lambda: store.queue(QueueFilter(), 0).total == 2)
            eventually(lambda: reader.failure_text is None)
            began_s = time.monotonic()
            reader.stop()
            assert time.monotonic() - began_s < 60


def test_a_missing_topic_is_said(kafka_settings: Settings, tmp_path: Path) -> None:
    assert kafka_settings.kafka_bootstrap_servers is not None
    store = CaseStore(tmp_path / "console.sqlite", kafka_settings, KEY)
    reader = TopicsReader(kafka_settings.kafka_bootstrap_servers, kafka_settings, store, lambda _: None)
    reader.start()
    eventually(lambda: "case-events" in (reader.failure_text or ""))
    reader.stop()
    store.close()


def test_brokers_stamp_events(cluster: Cluster) -> None:
    before = datetime.now(UTC) - timedelta(seconds=60)
    publish(cluster.settings, event_of(alert_of(1), "claimed"), at=NOON + timedelta(days=400))
    (record,) = cluster.read(CASE_EVENTS)
    assert before.timestamp() * 1_000 < record.timestamp_ms < time.time() * 1_000 + 60_000


def test_labels_decode_as_agents_read_them(open_desk: Callable[..., Desk], cluster: Cluster) -> None:
    desk = open_desk()
    desk.add(alert_of(1))
    desk.actions.label("case-1", "ann", new_id(), "legitimate", [])
    (record,) = cluster.read(LABELS)
    assert record.key == b"card-1"
    assert msgspec.json.decode(record.value or b"", type=Label).label == "legitimate"
