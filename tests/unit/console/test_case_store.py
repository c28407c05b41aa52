"""The console's database: what it holds does not depend on how it was read, and blind cases show nothing."""

import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.console import presentation
from pipeline.console.batches import BatchWriter
from pipeline.console.cases import blind_rank, forget_value
from pipeline.console.queries import ALERTS_SHOWN, BLIND_EVERY
from pipeline.console.store import CaseStore
from pipeline.console.views import QueueFilter
from pipeline.settings import Settings
from schemas.codec import encode
from schemas.messages import CaseEvent, Label, LogPosition, RecordPosition
from schemas.records import Record
from schemas.topics import ALERTS, CASE_EVENTS, DECISIONS, LABELS
from tests.helpers.case_topics import KEY, NOON, Fed, alert_of, decision_of, event_of, label_of, table_rows
from tests.helpers.logs import microseconds

NOW_US = microseconds(NOON)
EVERY = QueueFilter(limit=1_000)
ANY = EVERY._replace(status="any")


@pytest.fixture
def fed(tmp_path: Path) -> Fed:
    return Fed(tmp_path / "console.sqlite")


def ids(fed: Fed, wanted: QueueFilter = EVERY, now_us: int = NOW_US) -> list[str]:
    return [row.case_id for row in fed.store.queue(wanted, now_us).rows]


def test_a_case_is_open_until_its_alerts_are_closed_whatever_comes_first(fed: Fed, tmp_path: Path) -> None:
    first, second = alert_of(1, 1), alert_of(2, 1, severity=5.0, amount_base=30.0)
    closed = event_of(first, "closed", alerts=[first.alert_id])
    fed.feed(closed)
    assert fed.feed(first) == {"case-1"}
    assert (ids(fed), ids(fed, EVERY._replace(status="closed"))) == ([], ["case-1"])
    fed.feed(second)
    (row,) = fed.store.queue(EVERY, NOW_US).rows
    assert (row.alerts, row.money_at_risk, row.expected_loss, row.status) == (1, 30.0, 5.0, "open")
    other = Fed(tmp_path / "other.sqlite")
    other.feed(first)
    other.feed(second, closed)
    assert table_rows(other.store) == table_rows(fed.store)


def test_a_case_sleeps_until_its_time_and_is_held_for_its_lease(fed: Fed) -> None:
    alert = alert_of(1)
    fed.feed(alert, event_of(alert, "claimed"))
    (row,) = fed.store.queue(EVERY, NOW_US).rows
    assert (row.holder, row.holder_until_us) == ("ann", NOW_US + 600_000_000)
    assert ids(fed, EVERY._replace(holder="ann")) == ["case-1"]
    assert ids(fed, EVERY._replace(holder="-")) == []
    assert fed.store.next_case(EVERY, NOW_US) is None
    assert fed.store.next_case(EVERY, NOW_US + 600_000_000) == "case-1"
    until = NOON + timedelta(hours=1)
    fed.feed(event_of(alert, "snoozed", until=until))
    assert (ids(fed), ids(fed, EVERY._replace(status="snoozed"))) == ([], ["case-1"])
    assert ids(fed, now_us=microseconds(until)) == ["case-1"]


def test_the_queue_is_by_expected_loss_with_blind_cases_between(fed: Fed) -> None:
    alerts = [alert_of(n, severity=float(n), selection="audit" if n % 10 == 0 else "score") for n in range(100)]
    fed.feed(*alerts)
    page = fed.store.queue(EVERY, NOW_US)
    blind = [row.blind for row in page.rows]
    number = sum(blind)
    # One companion for each audit but the last, behind which there may be none.
    assert 19 <= number <= 20
    assert [at for at, is_blind in enumerate(blind) if is_blind] == [BLIND_EVERY * n + 4 for n in range(number)]
    ranks = [blind_rank(KEY, row.case_id) for row in page.rows if row.blind]
    assert ranks == sorted(ranks)
    losses = [row.expected_loss for row in page.rows if row.expected_loss is not None]
    assert losses == sorted(losses, reverse=True)
    parts = [fed.store.queue(EVERY._replace(after=at, limit=7), NOW_US) for at in range(0, 105, 7)]
    assert [row for part in parts for row in part.rows] == list(page.rows)
    assert {part.total for part in parts} == {100}


def test_more_blind_cases_than_places_follow_each_other(fed: Fed) -> None:
    fed.feed(*(alert_of(n, selection="audit") for n in range(6)), alert_of(6))
    blind = [row.blind for row in fed.store.queue(EVERY, NOW_US).rows]
    assert sum(blind) >= 6
    assert len(blind) == 7


def test_a_blind_case_shows_nothing_until_it_is_answered(fed: Fed) -> None:
    alert = alert_of(1, severity=77.0, selection="audit")
    fed.feed(alert, decision_of(alert))
    other = alert_of(2, merchant_id=alert.merchant_id)
    fed.feed(other, decision_of(other))
    view = fed.store.case("case-1", NOW_US)
    assert (view.row.blind, view.row.expected_loss, view.row.reason) == (True, None, None)
    shown = view.alerts[0].alert
    assert all(map(math.isnan, (shown.score, shown.severity, shown.threshold, shown.model_scores.river)))
    assert (shown.reasons, shown.selection, shown.versions.policy, view.alerts[0].decision) == ([], "", "", None)
    assert {(entry.score, entry.action) for entry in (*view.card, *view.merchants)} == {(None, None)}
    beside = fed.store.case("case-2", NOW_US)
    scores = {entry.transaction_id: entry.score for entry in beside.merchants}
    assert scores["t1"] is None
    (hit,) = fed.store.queue(ANY._replace(text="case-1"), NOW_US).rows
    assert (hit.expected_loss, hit.reason) == (None, None)
    # Whatever loss is asked for, it is found: else the filter would tell.
    assert "case-1" in ids(fed, EVERY._replace(least_loss=1e9))
    fed.feed(event_of(alert, "closed", alerts=[alert.alert_id]))
    answered = fed.store.case("case-1", NOW_US)
    assert (answered.row.blind, answered.row.expected_loss) == (False, 77.0)
    assert answered.alerts[0].alert == alert
    assert answered.alerts[0].decision == decision_of(alert)


def test_a_blind_case_shows_no_label_of_a_rule(fed: Fed) -> None:
    alert = alert_of(1, selection="audit")
    fed.feed(alert, decision_of(alert), label_of(alert, source="rule", note="velocity"), label_of(alert, "legitimate"))
    (view,) = fed.store.case("case-1", NOW_US).alerts
    assert [each.label.source for each in view.labels] == ["analyst"]
    assert view.contradiction is None
    assert [entry.label for entry in fed.store.case("case-1", NOW_US).card] == ["legitimate"]
    fed.feed(event_of(alert, "closed", alerts=[alert.alert_id]))
    (view,) = fed.store.case("case-1", NOW_US).alerts
    assert [each.label.source for each in view.labels] == ["rule", "analyst"]
    assert view.contradiction is not None


def test_companions_depend_on_the_log_and_the_key_alone(tmp_path: Path) -> None:
    alerts = [alert_of(n, selection="audit" if n % 7 == 3 else "score") for n in range(70)]
    found = []
    for name, key, size in (("a", KEY, 70), ("b", KEY, 1), ("c", b"another key" * 3, 70)):
        fed = Fed(tmp_path / f"{name}.sqlite", key=key)
        for at in range(0, 70, size):
            fed.feed(*alerts[at : at + size])
        rows = fed.store.queue(EVERY, NOW_US).rows
        found.append({row.case_id for row in rows if row.blind})
    assert found[0] == found[1] != found[2]
    assert {f"case-{n}" for n in range(70) if n % 7 == 3} <= found[0] & found[2]
    assert all(17 <= len(blind) <= 20 for blind in found)


def test_labels_hold_by_rank_and_time_and_their_differences_are_shown(fed: Fed) -> None:
    alert = alert_of(1)
    fed.feed(alert, decision_of(alert))
    fed.feed(label_of(alert, "fraud", analyst="ann"), at=NOON)
    late = NOON + timedelta(seconds=60)
    fed.feed(label_of(alert, "legitimate", source="chargeback", labelled_at=late), at=late)
    (view,) = fed.store.case("case-1", NOW_US).alerts
    assert [(each.label.source, each.holds) for each in view.labels] == [("analyst", True), ("chargeback", False)]
    assert view.contradiction == "Labels differ: chargeback says legitimate, and fraud by analyst ann holds."
    assert fed.store.figures().confirmed_alerts == 1
    fed.feed(label_of(alert, "legitimate", labelled_at=late, analyst="bob"), at=late)
    figures = fed.store.figures()
    assert (figures.labelled_alerts, figures.confirmed_alerts) == (1, 0)


def test_every_identifier_leads_to_its_case(fed: Fed) -> None:
    hostile = "'; DROP TABLE cases; --<script>%_\"\u0000\u202e"
    fed.feed(alert_of(1, case_id=hostile, card_id="card%"), alert_of(2), decision_of(alert_of(1, case_id=hostile)))

    def search(text: str) -> list[str]:
        return ids(fed, ANY._replace(text=text))

    assert search("t1") == search(hostile[:5]) == search("card%") == search("shop-1") == [hostile]
    assert search("card-2") == ["case-2"]
    assert ids(fed, EVERY._replace(text="card%")) == [hostile]
    assert search("none of them") == []
    fed.feed(event_of(alert_of(2), "closed", alerts=["alert-2"]))
    assert (search("card-2"), ids(fed, EVERY._replace(text="card-2"))) == (["case-2"], [])
    assert fed.store.case(hostile, NOW_US).row.card_id == "card%"
    with pytest.raises(KeyError):
        fed.store.case("unknown", NOW_US)
    not_alerted = decision_of(alert_of(9, 2), selection=None, features=None, transaction_id="plain")
    fed.feed(not_alerted)
    assert (search("plain"), search("plai")) == (["case-2"], [])


def test_records_that_cannot_be_read_and_forged_ones_are_passed_over(fed: Fed) -> None:
    alert = alert_of(1)
    good = encode(event_of(alert, "claimed"))
    bad = [
        b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", good[:-2], good.replace(b"ann", b"\\ud800"),
        encode(event_of(alert, "noted", note="x" * 10_001)), good.replace(b'"kind":"claimed"', b'"kind":7'),
    ]  # fmt: skip
    records = [fed.record(value, topic=topic) for topic in (CASE_EVENTS, ALERTS, DECISIONS, LABELS) for value in bad]
    huge = RecordPosition(topic="transactions", partition=10**30, offset=2**63 - 1)
    odd = alert_of(3, source=huge)
    records += [
        fed.record(message)
        for message in (
            event_of(alert_of(8), "closed", alerts=["alert-1"]), alert, odd, decision_of(odd), event_of(alert, "???"),
            label_of(alert, source="simulator"),
        )
    ]  # fmt: skip
    fed.apply(records)
    assert sorted(ids(fed)) == ["case-1", "case-3"]
    assert fed.store.refused == len(bad) * 4 + 1
    assert fed.store.labels_of("t1", "card-1") == []
    assert [entry.counted for entry in fed.store.case("case-1", NOW_US).history] == [False]


def test_times_that_cannot_be_are_passed_over(fed: Fed) -> None:
    far = datetime.fromisoformat("9999-12-31T23:59:59-12:00")
    alert, tolerance = alert_of(0), timedelta(seconds=fed.settings.future_tolerance_s)
    late = [alert_of(1, event_time=time) for time in (far, NOON + timedelta(days=1), NOON.replace(year=1969))]
    raised = alert_of(2, raised_at=far)
    fed.feed(
        alert, decision_of(alert), *late, *map(decision_of, late), raised, decision_of(alert, decided_at=far),
        event_of(alert, "snoozed", until=far), event_of(alert, "noted", at=far, note="called"),
    )  # fmt: skip
    fed.feed(event_of(alert, "noted"), at=datetime(9000, 1, 1, tzinfo=UTC))
    assert fed.store.refused == 11
    assert (ids(fed), fed.store.stream_us, fed.store.figures().decisions) == (["case-0"], NOW_US, 1)
    assert fed.store.case("case-0", NOW_US).history == []
    assert table_rows(fed.store)["decisions"]
    fed.feed(alert_of(3, at=NOON + tolerance, event_time=NOON + tolerance))
    # Under a simulated clock records are later than what they tell.
    fed.feed(alert_of(4, at=NOON.replace(year=2018)))
    assert ids(fed) == ["case-4", "case-3", "case-0"]


@pytest.mark.parametrize(("field", "longest"), [("case_id", 300), ("card_id", 256), ("transaction_id", 256)])
def test_alerts_that_no_event_or_label_could_name_are_passed_over(fed: Fed, field: str, longest: int) -> None:
    for number, length in enumerate((longest + 1, 0, longest)):
        changes: dict[str, Any] = {field: "x" * length}
        fed.feed(alert_of(number, **changes))
    assert fed.store.refused == 2
    assert len(ids(fed)) == 1


def messages() -> list[object]:
    chance = random.Random(5)
    made: list[object] = []
    for number in range(120):
        days = number / 3
        alert = alert_of(
            number, number // 2, NOON + timedelta(days=days), selection="audit" if number % 9 == 0 else "score"
        )
        made += [
            alert,
            decision_of(alert),
            decision_of(alert, transaction_id=f"x{number}", selection=None, features=None),
        ]
        if number % 3:
            made.append(
                event_of(
                    alert, "closed", alerts=[alert.alert_id, f"alert-{number - 1}"], event_id=f"e{number}",
                    at=alert.raised_at,
                )
            )  # fmt: skip
        if number % 5 == 0:
            made.append(label_of(alert, chance.choice(["fraud", "legitimate"]), labelled_at=alert.raised_at))
    return made


def arrived(message: object) -> datetime:
    """Time of a message's record."""
    if isinstance(message, Label):
        return message.labelled_at
    return message.at if isinstance(message, CaseEvent) else message.event_time  # type: ignore[attr-defined]


def test_a_file_made_anew_equals_the_one_that_followed(tmp_path: Path) -> None:
    """Old decisions are gone, and cases that were closed long ago; however the records were cut into batches."""
    followed, anew = Fed(tmp_path / "followed.sqlite"), Fed(tmp_path / "anew.sqlite")
    for message in messages():
        followed.feed(message, at=arrived(message))
    records = [anew.record(message, arrived(message)) for message in messages()]
    chance = random.Random(6)
    by_topic = [[record for record in records if record.topic == topic] for topic in {r.topic for r in records}]
    chance.shuffle(by_topic)
    for part in by_topic:
        for at in range(0, len(part), 50):
            anew.store.apply(part[at : at + 50], {}, caught_up=False)
    anew.apply([])
    assert table_rows(anew.store) == table_rows(followed.store)
    rows = table_rows(anew.store)
    oldest_us = min(row[4] for row in rows["decisions"])
    assert oldest_us >= microseconds(NOON + timedelta(days=9))
    assert "case-0" not in ids(followed, EVERY._replace(status="closed"))
    open_ids = set(ids(followed))
    assert open_ids
    assert any(int(case.removeprefix("case-")) < 10 for case in open_ids)


def test_another_cluster_key_or_version_makes_the_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "console.sqlite"
    fed = Fed(path)
    fed.feed(alert_of(1))
    fed.store.close()
    again = CaseStore(path, fed.settings, KEY)
    assert again.begin({"cluster": "c"}) == {("alerts", 0): 1}
    assert again.queue(QueueFilter(), 0).total == 1
    again.close()
    for key, cluster in ((KEY, "d"), (b"other", "d")):
        other = CaseStore(path, fed.settings, key)
        assert other.begin({"cluster": cluster}) == {}
        assert other.queue(QueueFilter(), 0).total == 0
        other.close()
    path.write_bytes(b"no database" * 1_000)
    assert CaseStore(path, fed.settings, KEY).begin({"cluster": "c"}) == {}
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_has_not_caught_up_has_no_cases_and_is_made_anew_by_the_next_start(fed: Fed) -> None:
    record, positions = fed.record(alert_of(1, log=LogPosition(partition=0, offset=3))), {(ALERTS.name, 0): 1}
    assert fed.store.apply([record], positions, caught_up=False) == frozenset()
    assert (ids(fed), fed.store.unlinked_alerts(1)) == ([], [])
    # A reader that begins again in the same program goes on.
    assert fed.store.begin({"cluster": "c"}) == positions
    fed.store.close()
    again = CaseStore(fed.store.path, fed.settings, KEY)
    assert again.begin({"cluster": "c"}) == {}
    assert again.apply([record], positions, caught_up=True) == {"case-1"}
    assert len(again.unlinked_alerts(1)) == 1
    again.close()
    assert CaseStore(fed.store.path, fed.settings, KEY).begin({"cluster": "c"}) == positions


def test_a_batch_is_written_whole_or_not_at_all(fed: Fed, monkeypatch: pytest.MonkeyPatch) -> None:
    fed.feed(alert_of(1))
    before = table_rows(fed.store), fed.store.positions()
    record = fed.record(alert_of(2))

    def fail(self: BatchWriter, found: Record) -> list[str]:
        raise RuntimeError(found)

    with monkeypatch.context() as patched:
        patched.setattr(BatchWriter, "_event", fail)
        with pytest.raises(RuntimeError):
            fed.apply([record, fed.record(event_of(alert_of(1), "claimed"))])
    assert (table_rows(fed.store), fed.store.positions()) == before


def test_a_forgotten_card_is_gone_and_the_others_stay(fed: Fed, tmp_path: Path) -> None:
    for number in (1, 2):
        alert = alert_of(number)
        fed.feed(alert, decision_of(alert), label_of(alert), event_of(alert, "noted", note="called"))
    fed.store.add_links({1 << 47: {}, 0: {"ip": "10.0.0.1"}, 1: {"ip": "10.0.0.1"}})
    assert forget_value(fed.store.path, "ip", "10.0.0.1") == 2
    assert ids(fed, ANY._replace(text="10.0.0.1")) == []
    assert forget_value(fed.store.path, "card_id", "card-1") == 1
    left = {
        name: rows for name, rows in table_rows(fed.store).items() if "card-1" in repr(rows) or "case-1" in repr(rows)
    }
    assert left == {}
    assert ids(fed) == ["case-2"]
    for path in tmp_path.glob("console.sqlite*"):
        assert b"card-1" not in path.read_bytes(), path


def test_a_file_made_anew_without_a_forgotten_card_equals_the_one_that_followed(tmp_path: Path) -> None:
    followed = Fed(tmp_path / "followed.sqlite")
    alerts = [alert_of(n, n // 3, selection="audit" if n % 4 == 0 else "score") for n in range(30)]
    forgotten = event_of(alerts[0], "forgotten", case_id="card-0")
    late = [event_of(alerts[1], "noted", note="late"), decision_of(alerts[2]), label_of(alerts[0], note="late")]
    made = [*alerts, *map(decision_of, alerts), event_of(alerts[0], "noted", note="called"), forgotten, *late]
    for message in made:
        followed.feed(message)
    anew = Fed(tmp_path / "anew.sqlite")
    records = [anew.record(message) for message in made]
    # Readers take the topics in any order.
    chance = random.Random(6)
    by_topic = [[record for record in records if record.topic == topic] for topic in {r.topic for r in records}]
    while by_topic:
        part = chance.choice(by_topic)
        anew.store.apply([part.pop(0)], {}, caught_up=False)
        by_topic = [part for part in by_topic if part]
    anew.store.apply([], dict(anew._ends), caught_up=True)
    assert table_rows(anew.store) == table_rows(followed.store)
    left = {name for name, rows in table_rows(anew.store).items() if "card-0" in repr(rows) or "called" in repr(rows)}
    assert left == {"forgotten"}
    assert "case-0" not in ids(anew)
    again = CaseStore(anew.store.path, anew.settings, KEY)
    again.begin({"cluster": "c"})
    again.apply([anew.record(alerts[0])], {}, caught_up=True)
    assert "case-0" not in {row.case_id for row in again.queue(EVERY, NOW_US).rows}


def test_of_many_alerts_the_open_ones_are_shown_first_and_all_where_it_is_asked(fed: Fed) -> None:
    alerts = [alert_of(number, 1, event_time=NOON, raised_at=NOON) for number in range(ALERTS_SHOWN + 100)]
    fed.feed(*alerts, *map(decision_of, alerts))
    newest = [alert.alert_id for alert in alerts[100:]]
    view = fed.store.case("case-1", NOW_US)
    assert (view.alerts_of_all, [each.alert.alert_id for each in view.alerts]) == (ALERTS_SHOWN + 100, newest)
    fed.feed(event_of(alerts[0], "closed", alerts=newest))
    view = fed.store.case("case-1", NOW_US)
    assert (view.row.alerts, len(view.alerts)) == (100, ALERTS_SHOWN)
    assert [each.alert.alert_id for each in view.alerts if not each.closed] == [each.alert_id for each in alerts[:100]]
    assert len(fed.store.case("case-1", NOW_US, 10_000).alerts) == ALERTS_SHOWN + 100


def test_absurd_severities_make_no_sum_infinite(fed: Fed) -> None:
    amounts = (1.7e308, 1.7e308, -1.7e308)
    fed.feed(*(alert_of(n, 1, severity=amount, amount_base=amount) for n, amount in enumerate(amounts)))
    fed.feed(*(decision_of(alert_of(n, 1, amount_base=amount)) for n, amount in enumerate(amounts)))
    (row,) = fed.store.queue(EVERY, NOW_US).rows
    assert (row.expected_loss, row.money_at_risk) == (1e15, 1e15)
    view = fed.store.case("case-1", NOW_US)
    assert all(abs(entry.amount_base) <= 1e15 for entry in view.card)
    assert presentation.record(view)


def test_figures_are_of_the_whole(fed: Fed) -> None:
    early, late = alert_of(1), alert_of(2, at=NOON + timedelta(days=2))
    fed.feed(
        early,
        decision_of(early),
        late,
        decision_of(late, source=RecordPosition(topic="transactions", partition=3, offset=9)),
        at=late.event_time,
    )
    figures = fed.store.figures()
    assert (figures.decisions, figures.alerts_last_day) == (2, 1)
    assert figures.source_ends == {0: 2, 3: 10}
    assert fed.store.stream_us == microseconds(late.event_time)


def test_settings_name_the_file(tmp_path: Path) -> None:
    from pipeline.console.tables import database_file

    assert database_file(Settings(data_dir=tmp_path)) == tmp_path / "console.sqlite"


def test_a_new_alert_wakes_a_case(fed: Fed) -> None:
    first = alert_of(1)
    fed.feed(first, decision_of(first))
    until = datetime.now(UTC) + timedelta(days=1)
    fed.feed(event_of(first, "snoozed", until=until, alerts=[first.alert_id]))
    assert ids(fed, EVERY._replace(status="snoozed")) == ["case-1"]
    second = alert_of(2, 1)
    fed.feed(second, decision_of(second))
    assert ids(fed) == ["case-1"]
