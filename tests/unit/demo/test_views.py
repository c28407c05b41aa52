"""What people see in a terminal: rendering is pure, so that it is tested without a broker."""

import io
import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from rich.text import Text

from pipeline.broker.running import demo_dir
from pipeline.commands.alerts import Alerts
from pipeline.demo.figures import LatencyHistogram, RateMeter, RunFigures, RunState, summary_json
from pipeline.demo.text import alert_lines, alert_rows
from pipeline.demo.view import (
    COMMAND_INDENT,
    LiveView,
    PlainView,
    closing_lines,
    command_text,
    dashboard,
    make_view,
    progress_line,
    summary_lines,
    wants_colours,
)
from pipeline.settings import Settings
from schemas.messages import Alert, LogPosition, ModelScores, Reason, RecordPosition, Versions


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def make_alert(**changes: object) -> Alert:
    fields: dict[str, object] = {
        "alert_id": "a-1",
        "case_id": "case-C00042-7",
        "case_sequence": 1,
        "severity": 1234.5,
        "raised_at": datetime(2018, 6, 11, 14, 3, 23, tzinfo=UTC),
        "transaction_id": "20180611-000123",
        "card_id": "C00042",
        "merchant_id": "M00077",
        "event_time": datetime(2018, 6, 11, 16, 3, 22, tzinfo=timezone(timedelta(hours=2))),
        "amount": Decimal("1250.00"),
        "currency": "EUR",
        "amount_base": 1250.0,
        "base_currency": "EUR",
        "score": 0.987,
        "model_scores": ModelScores(lightgbm=0.98, river=0.99),
        "threshold": 0.4,
        "selection": "score",
        "reasons": [
            Reason(
                code="amount",
                feature="card_amount_to_usual",
                value=6.2,
                usual=1.0,
                contribution=2.5,
                sentence="The amount is 6.2 times what this card usually spends in one transaction: EUR 201.61.",
            ),
            Reason(
                code="risk",
                feature="merchant_fraud_risk_30d",
                value=0.3,
                contribution=1.1,
                sentence="Three in ten reports about this merchant were fraud.",
            ),
        ],
        "versions": Versions(lightgbm="l1", river="r1", policy="p1", kernel="k1", rates="x1"),
        "source": RecordPosition(topic="transactions", partition=0, offset=1),
        "log": LogPosition(partition=0, offset=1),
    }
    return Alert(**{**fields, **changes})  # type: ignore[arg-type]


def busy_state() -> RunState:
    state = RunState(started_s=100.0, stage="streaming simulated days", days=30, day=12, day_share=0.5, workers=2)
    state.simulated = datetime(2018, 6, 25, 14, 0, tzinfo=UTC)
    state.transactions_per_s = 1803.4
    figures = state.figures
    figures.transactions, figures.warm_up_transactions, figures.decisions = 124_310, 80_000, 124_295
    figures.alerts, figures.labelled_alerts, figures.confirmed_alerts = 970, 100, 71
    figures.labels, figures.river_version, figures.river_versions = 90_000, "sgd-7d1c@31337", 28
    for milliseconds in range(1, 101):
        figures.latencies.add(float(milliseconds))
    figures.latest_alerts.extend(make_alert(transaction_id=f"t{i}") for i in range(5))
    return state


def rendered(state: RunState, width: int = 80, height: int = 24) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(dashboard(state, 142.0, width, height))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_an_alert_shows_what_an_analyst_needs_within_80_columns() -> None:
    lines = [line.plain for line in alert_lines(make_alert())]
    text = "\n".join(lines)
    for part in (
        "2018-06-11 14:03:22 UTC",
        "1,250.00 EUR",
        "score 0.987",
        "severity 1,234.50 EUR",
        "card C00042",
        "merchant M00077",
        "transaction 20180611-000123",
        "Three in ten reports about this merchant were fraud.",
    ):
        assert part in text
    assert "6.2 times what this card usually spends" in " ".join(text.split())
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  - ") for line in lines) == 2


def test_a_narrow_terminal_moves_facts_to_lines_of_their_own() -> None:
    lines = [line.plain for line in alert_lines(make_alert(), width=50)]
    assert max(map(len, lines)) <= 50
    assert "severity" not in lines[0]


def test_an_identifier_is_never_cut_in_a_full_alert() -> None:
    identifier = "x" * 200
    lines = [line.plain for line in alert_lines(make_alert(transaction_id=identifier))]
    assert any(identifier in line for line in lines)


def test_an_alert_that_was_not_chosen_by_its_score_or_continues_a_case_says_so() -> None:
    text = "\n".join(line.plain for line in alert_lines(make_alert(selection="audit", case_sequence=9), number=3))
    assert "chosen by audit" in text
    assert "case case-C00042-7, alert 3" in text


def test_an_amount_in_another_currency_has_the_base_currency_s_beside_it() -> None:
    head, *_ = alert_lines(make_alert(currency="USD", amount_base=1150.5), width=100)
    assert "1,250.00 USD (1,150.50 EUR)" in head.plain
    assert "(" not in alert_lines(make_alert())[0].plain


def alert_value(case: str, minute: int) -> bytes:
    return msgspec.json.encode(make_alert(case_id=case, event_time=datetime(2026, 3, 1, 9, minute, tzinfo=UTC)))


def test_alerts_of_a_case_are_counted_and_late_ones_marked() -> None:
    alerts = Alerts()
    shown = [alerts.next(alert_value(case, minute)) for case, minute in (("a", 5), ("b", 9), ("a", 7), ("a", 12))]
    assert [item.number for item in shown] == [1, 1, 2, 3]
    assert [item.late for item in shown] == [False, False, True, False]
    for value in (b"no alert", b"[" * 200_000):
        assert alerts.next(value).alert is None
    late = "\n".join(line.plain for line in alert_lines(make_alert(), late=True))
    assert "out of order" in late


def test_labels_and_dead_letters_that_are_none_end_no_view() -> None:
    figures = RunFigures()
    for value in (b"{}", b"[" * 200_000, b"\xff"):
        figures.label(value)
        figures.dead_letter(value)
    assert (figures.labels, figures.dead_letters) == (3, 3)


def test_control_characters_of_a_producer_do_not_reach_the_terminal() -> None:
    alert = make_alert(card_id="C\x1b[2J", merchant_id="M\n\u202e", selection="a\x07")
    for line in [*alert_lines(alert), *alert_rows(alert)]:
        assert all(character.isprintable() for character in line.plain), line.plain


def test_markup_in_an_identifier_is_text() -> None:
    state = busy_state()
    state.figures.latest_alerts.append(make_alert(card_id="[bold]C[/]"))
    assert "card [bold]C[/]" in rendered(state)


def test_an_alert_that_comes_while_the_picture_is_drawn_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    state = busy_state()

    def rows(alert: Alert, width: int) -> list[Text]:
        monitor = threading.Thread(target=state.figures.latest_alerts.append, args=(alert,))
        monitor.start()
        monitor.join()
        return alert_rows(alert, width)

    monkeypatch.setattr("pipeline.demo.view.alert_rows", rows)
    assert rendered(state).count("card C00042") == 2


def test_an_alert_row_has_its_whole_reason_below() -> None:
    alert = make_alert()
    row, *reason = (line.plain for line in alert_rows(alert, width=80))
    assert row == "06-11 14:03  1,250.00 EUR 0.99 card C00042 at M00077"
    assert " ".join(line.strip() for line in reason) == alert.reasons[0].sentence
    assert max(map(len, reason)) <= 80
    named = Reason(code="a", feature="amount", value=1.0, contribution=1.0, sentence="1,250.00 EUR is unusual.")
    once = [line.plain for line in alert_rows(make_alert(reasons=[named]))]
    assert once == ["06-11 14:03               0.99 card C00042 at M00077", "    1,250.00 EUR is unusual."]
    cut, *_ = alert_rows(make_alert(card_id="C" * 80), width=80)
    assert (len(cut.plain), cut.plain[-1]) == (80, "…")


def test_the_picture_fits_a_small_terminal() -> None:
    lines = rendered(busy_state()).splitlines()
    assert len(lines) < 24
    assert max(len(line.rstrip()) for line in lines) <= 80


@pytest.mark.parametrize(
    "part",
    [
        "running for 42 s",
        "Streaming simulated days",
        "Day 12 of 30",
        "2018-06-25 14:00:00 UTC",
        "124,310",
        "1,803 a second",
        "15 transactions wait",
        "71% of 100 labelled",
        "sgd-7d1c@31337",
        "99 % within 99 ms",
        "2 workers",
        "Ctrl-C stops everything",
    ],
)
def test_the_picture_shows(part: str) -> None:
    assert part in rendered(busy_state())


def test_the_picture_before_the_first_transaction_shows_the_stage_alone() -> None:
    text = rendered(RunState(started_s=100.0, stage="starting the broker"))
    assert "Starting the broker" in text
    assert "Decisions" not in text


def test_the_picture_of_a_run_without_end_has_no_bar() -> None:
    state = busy_state()
    state.days = 0
    text = rendered(state)
    assert "Day 12, until stopped" in text
    assert "━" not in text


def test_a_progress_line_is_short_and_complete() -> None:
    line = progress_line(busy_state(), 142.0)
    assert line == "[   42 s] day 12/30 1,803/s, 124295 decided, 15 waiting, 970 alerts (71% true)"
    assert len(line) <= 80


def test_the_last_line_is_the_agreed_object() -> None:
    figures = busy_state().figures
    figures.dead_letters = 3
    summary = json.loads(summary_json(figures))
    assert summary["p50_ms"] == pytest.approx(50, rel=0.02)
    assert summary["p99_ms"] == pytest.approx(99, rel=0.02)
    del summary["p50_ms"], summary["p99_ms"]
    assert summary == {
        "transactions": 124_310,
        "decisions": 124_295,
        "alerts": 970,
        "dead_letters": 3,
        "labels": 90_000,
        "river_version": "sgd-7d1c@31337",
    }


def test_the_last_line_of_a_run_that_saw_nothing_is_valid() -> None:
    summary = json.loads(summary_json(RunFigures()))
    assert summary["river_version"] is summary["p50_ms"] is summary["p99_ms"] is None


def test_the_summary_names_what_is_missing_or_repeated() -> None:
    state = busy_state()
    state.figures.decisions += 2
    state.figures.repeated_decisions = 2
    text = "\n".join(summary_lines(state, 142.0))
    assert "15 transactions without one, 2 repeated or foreign" in text
    assert "The rest is decided when workers start there again." in text
    assert "one for each transaction" not in text
    assert max(map(len, summary_lines(state, 142.0))) <= 80


def test_the_summary_of_a_complete_run_says_so() -> None:
    state = busy_state()
    state.figures.decisions = state.figures.transactions
    assert "124,310, one for each transaction" in "\n".join(summary_lines(state, 142.0))


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        (Terminal(), {"TERM": "xterm-256color"}, True),
        (io.StringIO(), {"TERM": "xterm-256color"}, False),
        (Terminal(), {"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {}, False),
    ],
)
def test_escape_codes_go_to_a_willing_terminal_alone(
    stream: io.StringIO, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wants_colours(stream) is expected
    view = make_view(RunState(started_s=0.0), stream)
    assert isinstance(view, LiveView if expected else PlainView)


def test_plain_lines_come_every_couple_of_seconds_and_without_escape_codes() -> None:
    stream = io.StringIO()
    state = busy_state()
    now_s = 100.0
    view = PlainView(state, stream, clock=lambda: now_s)
    with view:
        view.stage("streaming")
        for _ in range(100):
            now_s += 0.1
            view.tick()
        view.print_line("x " * 100)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[    0 s] streaming"
    assert sum("decided" in line for line in lines) == pytest.approx(5, abs=1)
    assert "\x1b" not in stream.getvalue()
    assert max(map(len, lines)) <= 80


def test_the_live_view_leaves_what_was_said_and_removes_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with LiveView(busy_state(), stream) as view:
        view.print_line("the first model is trained")
    text = stream.getvalue()
    assert "the first model is trained" in text
    assert "Day 12 of 30" in text
    assert text.rstrip().endswith("\x1b[2K")


def test_percentiles_are_exact_to_a_bucket() -> None:
    histogram = LatencyHistogram()
    for milliseconds in range(1, 1_001):
        histogram.add(float(milliseconds))
    for share, expected in ((0.0, 1), (0.5, 500), (0.99, 990), (1.0, 1000)):
        assert histogram.percentile_ms(share) == pytest.approx(expected, rel=0.02)
    assert LatencyHistogram().percentile_ms(0.5) is None


def test_latencies_outside_all_buckets_are_counted_at_the_ends() -> None:
    histogram = LatencyHistogram()
    histogram.add(-5.0)
    histogram.add(1e12)
    smallest, largest = histogram.percentile_ms(0.5), histogram.percentile_ms(1.0)
    assert smallest is not None
    assert largest is not None
    assert smallest < 0.02
    assert largest > 3_600_000


def test_a_rate_is_that_of_the_last_seconds() -> None:
    meter = RateMeter()
    assert meter.update(0.0, 0) == 0.0
    for second in range(1, 11):
        rate = meter.update(float(second), second * 100)
    assert rate == pytest.approx(100)
    for second in range(11, 21):
        rate = meter.update(float(second), 1_000)
    assert rate == 0.0


def decision(transaction_id: str, action: str = "allow") -> bytes:
    return json.dumps({"transaction_id": transaction_id, "action": action, "score": 0.1}).encode()


def label(transaction_id: str, value: str) -> bytes:
    return json.dumps({"transaction_id": transaction_id, "label": value}).encode()


def test_each_transaction_is_timed_once_and_none_of_the_warm_up() -> None:
    figures = RunFigures()
    figures.sent("w", 0.0, warm_up=True)
    figures.sent("t", 1.0)
    figures.sent("late", 1.0)
    figures.decision(decision("w"), 5.0)
    figures.decision(decision("t"), 1.25)
    figures.decision(decision("t"), 9.0)
    assert (figures.transactions, figures.warm_up_transactions, figures.decisions) == (3, 1, 3)
    assert figures.repeated_decisions == 1
    assert figures.undecided == 1
    assert figures.missing(10) == ["late"]
    assert figures.latencies.count == 1
    assert figures.latencies.percentile_ms(0.5) == pytest.approx(250, rel=0.02)


def test_a_refused_transaction_is_not_waited_for_and_a_refused_label_changes_nothing() -> None:
    figures = RunFigures()
    figures.sent("bad", 0.0)
    figures.sent("good", 0.0)
    figures.dead_letter(label("good", "fraud"))
    figures.dead_letter(b"\xffnot a message")
    assert (figures.dead_letters, figures.refused, figures.undecided) == (2, 0, 2)
    figures.dead_letter(json.dumps({"transaction_id": "bad", "amount": "much"}).encode())
    assert (figures.dead_letters, figures.refused, figures.undecided) == (3, 1, 1)
    assert figures.missing(10) == ["good"]


def test_the_alerts_of_the_warm_up_are_not_rated() -> None:
    figures = RunFigures()
    figures.sent("w", 0.0, warm_up=True)
    figures.decision(decision("w", "alert"), 1.0)
    figures.label(label("w", "fraud"))
    assert figures.alerts_decided == 1
    assert figures.labelled_alerts == 0


def test_precision_is_over_alerts_with_a_label_in_whatever_order_they_are_read() -> None:
    figures = RunFigures()
    for name in "abcde":
        figures.sent(name, 0.0)
    figures.label(label("a", "fraud"))
    for name in "abcd":
        figures.decision(decision(name, "alert"), 1.0)
    figures.decision(decision("e"), 1.0)
    figures.label(label("b", "legitimate"))
    figures.label(label("c", "disputed"))
    figures.label(label("e", "fraud"))
    figures.label(label("of another run", "fraud"))
    assert figures.labels == 5
    assert (figures.labelled_alerts, figures.confirmed_alerts) == (2, 1)
    assert figures.precision == 0.5
    figures.label(label("c", "fraud"))
    assert figures.precision == pytest.approx(2 / 3)


def test_river_versions_are_counted_after_the_first() -> None:
    figures = RunFigures()
    for name, version in (("river", "r0"), ("policy", "p0"), ("river", "r1"), ("river", "r2")):
        figures.model(json.dumps({"name": name, "version": version, "payload": {}}).encode())
    assert (figures.river_version, figures.river_versions) == ("r2", 2)


def test_an_early_end_has_no_table_of_zeros(tmp_path: Path) -> None:
    early = RunState(started_s=0.0, stage="training the first LightGBM model")
    (line,) = summary_lines(early, 12.0)
    assert "ended after 12 s" in line
    assert "training the first LightGBM model" in line
    assert closing_lines(Settings(data_dir=tmp_path), early) == []


def test_the_end_says_what_is_left_and_what_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=tmp_path / "of mine", kafka_bootstrap_servers=None)
    (demo_dir(settings) / "kafka").mkdir(parents=True)
    (demo_dir(settings) / "kafka" / "log").write_bytes(bytes(3_000_000))
    lines = closing_lines(settings, busy_state())
    assert "3 MB of topics" in lines[0]
    assert str(demo_dir(settings)) in lines[1]
    first, *_ = lines[lines.index("What next") + 2 :]
    assert first.endswith("alerts --once")
    assert f"FRAUD_PIPELINE_DATA_DIR='{settings.data_dir}'" in first
    assert Path(first.split()[-3]).name == "fraud-pipeline"
    assert not any(line.endswith("dead-letters list") for line in lines)


def test_the_commands_of_the_end_name_the_run_s_cluster_and_topics(tmp_path: Path) -> None:
    state = busy_state()
    state.topic_prefix, state.figures.dead_letters = "demo-1-", 1
    settings = Settings(data_dir=tmp_path, kafka_bootstrap_servers="127.0.0.1:9")
    named = [line for line in closing_lines(settings, state) if "PREFIX=demo-1- " in line and "SERVERS=127" in line]
    for command in ("dead-letters list", "alerts --once"):
        assert any(line.endswith(f"/fraud-pipeline {command}") for line in named), named


def test_a_command_to_copy_is_never_wrapped() -> None:
    stream = io.StringIO()
    command = COMMAND_INDENT + command_text(Settings(), "alerts", "x" * 100)
    for view in (PlainView(busy_state(), stream), LiveView(busy_state(), stream)):
        view.print_line(command)
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == [command, command]
