"""The console's values as text, and the scripts of others that it serves."""

import csv
import hashlib
import io
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from pipeline.console import app, presentation
from pipeline.console.case_events import ReplayedEvent
from schemas.messages import CaseEvent
from tests.helpers.case_views import HOSTILE, NOW, case_view, us

NOON = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)


def entry(kind: str, by: str = "anna", *, counted: bool = True, undone: bool = False, **more: object) -> ReplayedEvent:
    event = CaseEvent(event_id=f"{kind}-{by}", case_id="c", card_id="k", kind=kind, by=by, at=NOW, **more)  # type: ignore[arg-type]
    return ReplayedEvent(event, us(NOW), counted, undone)


@pytest.mark.parametrize(
    ("choice", "own", "end"),
    [
        ("hour", "", "2026-03-04T13:30"),
        ("tonight", "", "2026-03-04T18:00"),
        ("tomorrow", "", "2026-03-05T08:00"),
        ("days", "", "2026-03-07T12:30"),
        ("own", "2026-03-04T12:31", "2026-03-04T12:31"),
    ],
)
def test_a_snooze_ends_at_the_chosen_time(choice: str, own: str, end: str) -> None:
    assert presentation.snooze_end(choice, own, NOON) == datetime.fromisoformat(f"{end}+00:00")


def test_an_own_time_has_an_offset_or_is_utc() -> None:
    end = datetime(2026, 3, 5, 7, tzinfo=UTC)
    for own in ("2026-03-05T08:00+01:00", "2026-03-05T07:00+00:00", "2026-03-05T07:00", "2026-03-05T01:30-05:30"):
        assert presentation.snooze_end("own", own, NOON) == end
    with pytest.raises(ValueError, match="offset"):
        presentation.snooze_end("own", "0001-01-01T00:00+12:00", NOON)


def test_absurd_amounts_are_written() -> None:
    for value in (float("inf"), float("-inf"), float("nan"), 1e308, -1e308):
        assert presentation.number(value)
        assert 0 <= float(presentation.bar(value, float("inf"))) <= 100
        assert 0 <= float(presentation.bar(value, 1.0)) <= 100


def test_tonight_is_the_next_evening() -> None:
    late = NOON.replace(hour=19)
    assert presentation.snooze_end("tonight", "", late) == datetime(2026, 3, 5, 18, tzinfo=UTC)


@pytest.mark.parametrize("own", ["", "soon", "2026-03-04T12:29", "2026-03-04T12:30"])
def test_an_own_time_that_is_none_or_has_passed_is_refused(own: str) -> None:
    with pytest.raises(ValueError, match=r"snooze"):
        presentation.snooze_end("own", own, NOON)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "  ="])
def test_no_cell_is_taken_for_a_formula(start: str) -> None:
    assert presentation.csv_cell(f"{start}1+1") == f"'{start}1+1"


@pytest.mark.parametrize("time_us", [10**30, -(10**30), 253_402_344_000_000_000, 0])
def test_every_time_can_be_written(time_us: int) -> None:
    assert presentation.moment(time_us).count(":") == 1


def test_csv_has_every_row_and_hides_blind_ones() -> None:
    rows = [case_view(f"{text}-1", text, blind=text == HOSTILE[0]).row for text in HOSTILE]
    text = presentation.csv_text(rows)
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [line["card_id"].removeprefix("'") for line in read] == list(HOSTILE)
    assert [line["expected_loss"] == "" for line in read] == [True, *[False] * 7]
    assert [line["reason"] == "" for line in read] == [True, *[False] * 7]
    assert not any(cell[:1] in "=+-@\t\r\n" for line in read for cell in line.values() if cell)
    assert presentation.csv_text([]).splitlines() == [",".join(presentation.CSV_COLUMNS)]


def test_only_an_own_action_that_counted_can_be_undone() -> None:
    history = [
        entry("snoozed"),
        entry("closed", "bob"),
        entry("closed", counted=False),
        entry("reopened", undone=True),
        entry("noted"),
        entry("claimed"),
    ]
    found = presentation.last_undoable(history, "anna")
    assert found is history[0]
    assert presentation.last_undoable(history, None) is history[1]
    assert presentation.last_undoable(history[4:], "anna") is None


def test_actions_are_sentences() -> None:
    until = entry("snoozed", until=NOON)
    assert presentation.sentence(until, {}) == "snoozed the case until 2026-03-04 12:30 UTC"
    assert presentation.sentence(entry("closed", labels=["a", "b"]), {}) == "labelled 2 transactions"
    assert presentation.sentence(entry("claimed", counted=False), {}).endswith("(no effect: it came too late)")
    assert presentation.sentence(entry("new\nkind", undone=True), {}) == "new\\nkind (undone)"


def test_an_address_of_a_case_is_one_path_segment() -> None:
    for text in HOSTILE:
        path = presentation.case_url(text, "/label")
        assert path.isascii()
        assert path.count("/") == 3
        assert not set("?#<>\"'\\ ") & set(path)


def test_the_record_of_a_case_is_json_without_markup_and_its_digest_follows_what_is_shown() -> None:
    case = case_view("c-1", HOSTILE[1])
    data = presentation.record(case)
    assert not set(b"<>&") & set(data)
    assert msgspec.json.decode(data)["row"]["card_id"] == HOSTILE[1]
    assert presentation.digest(case) == hashlib.sha256(data).hexdigest()
    assert presentation.digest(case) != presentation.digest(case._replace(row=case.row._replace(holder="bob")))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("amount", 812.4, "812.40"),
        ("card_count_1d", 4.0, "4"),
        ("card_seconds_since_last", 7200.0, "2.0 hours"),
        ("merchant_surge", 2.4, "2.40 \u00d7"),
        ("merchant_surge", None, "\u2013"),
        ("amount", float("nan"), "\u2013"),
        ("unknown", 0.01234, "0.0123"),
    ],
)
def test_values_of_features_have_their_unit(name: str, value: float | None, text: str) -> None:
    assert presentation.feature_value(name, value) == text


def test_vendored_files_are_those_that_are_declared() -> None:
    declared = tomllib.loads((app.STATIC / "VENDORED.toml").read_text(encoding="utf-8"))
    digests = {item["file"]: item["sha256"] for item in declared["file"]}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in app.STATIC.iterdir()}
    own = {"console.css", "console.js", "events.js", "VENDORED.toml"}
    assert {name: digest for name, digest in found.items() if name not in own} == digests
    assert {item["name"] for item in declared["file"]} == {item["name"] for item in declared["notice"]}
    assert all(item.keys() == {"name", "version", "file", "sha256", "licence", "package"} for item in declared["file"])


def test_templates_and_own_scripts_need_no_inline_script_or_style() -> None:
    templates = Path(app.__file__).with_name("templates")
    for path in templates.glob("*.jinja"):
        text = path.read_text(encoding="utf-8")
        assert " style=" not in text, path.name
        assert " onclick" not in text, path.name
        assert "<style" not in text or path.name == "case_export.html.jinja", path.name
    for name in ("console.js", "events.js"):
        text = (app.STATIC / name).read_text(encoding="utf-8")
        assert [part for part in ("eval(", "innerHTML", "new Function", "document.write") if part in text] == []
