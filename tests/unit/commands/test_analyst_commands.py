"""The commands for analysts, as far as they need no broker."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.commands.label import LocatedCard, find_card
from pipeline.commands.lookup import announced
from pipeline.learning.labels import too_late
from schemas.records import Record
from schemas.topics import TRANSACTIONS

HAPPENED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("time", ["2018-08-22", "2018-08-22 09:30"])
def test_a_time_without_an_offset_is_refused_with_one_that_is_accepted(time: str, tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["label", "t-1", "fraud", "--at", time])
    assert refused.exit_code == 2
    advised = refused.output.partition("write it as ")[2].partition(" for UTC")[0]
    nowhere = {"KAFKA_BOOTSTRAP_SERVERS": None, "FRAUD_PIPELINE_DATA_DIR": str(tmp_path)}
    alone = CliRunner().invoke(main, ["label", "t-1", "fraud", "--at", advised], env=nowhere)
    assert (alone.exit_code, "No embedded broker runs" in alone.output) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", ""],
        ["label", "", "fraud"],
        ["label", "t", "fraud", "--card", ""],
        ["label", "t", "fraud", "--analyst", ""],
    ],
)
def test_an_empty_name_is_refused(arguments: list[str]) -> None:
    refused = CliRunner().invoke(main, arguments)
    assert (refused.exit_code, "it is empty; write a name" in refused.output) == (2, True)


@pytest.mark.parametrize(("days", "warned"), [(120, False), (121, True)])
def test_a_label_says_that_it_comes_too_late_to_count(days: int, warned: bool) -> None:
    value = b'{"transaction_id": "t-1", "card_id": "C1", "event_time": "2026-01-01T01:00:00+01:00"}'
    found = find_card(lambda topic: [Record(topic.name, 0, 0, 0, b"k", value)] * (topic is TRANSACTIONS), "t-1")
    assert found == LocatedCard("C1", "transactions", HAPPENED)
    text = too_late(found.event_time, HAPPENED + timedelta(days=days), grace_days=120) or ""
    assert ("of 2026-01-01 00:00:00 UTC, more than 120 days before" in text) is warned
    assert too_late(None, HAPPENED, grace_days=120) is None


@pytest.mark.parametrize(("silent_s", "said"), [(0.0, "Searching decisions ...\n"), (1e9, "")])
def test_a_long_search_says_once_where(silent_s: float, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    records = [Record("decisions", 0, offset, 0, b"k", b"v") for offset in range(3)]
    assert list(announced(records, "decisions", silent_s)) == records
    assert capsys.readouterr() == ("", said)
