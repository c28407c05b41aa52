"""``fraud-pipeline inspect``: what it shows of a record, and what it says where it cannot."""

import json

import click
import pytest

from pipeline.commands.inspect import shown
from schemas.codec import encode
from schemas.records import Record
from schemas.topics import PROFILED, TRANSACTIONS
from tests.helpers.blocks import changed
from tests.helpers.logs import Log, after, profiled, transaction
from tests.unit.engine.test_engine_card import NOW, partition


def block() -> tuple[Record, list[bytes]]:
    """A record of ``profiled``, and its rows as JSON."""
    source, log = Log(TRANSACTIONS), Log(PROFILED)
    for number in range(3):
        source.append(transaction(number, after(number)), after(number))
    result = partition().process(source.records, NOW)
    (record,) = log.take_whole(result)
    return record, [encode(message) for message in profiled(result, PROFILED)]


def test_a_block_is_shown_by_its_header_and_its_rows() -> None:
    record, rows = block()
    header, *found = shown(record, "profiled", None)
    reported = json.loads(header)
    assert (reported["rows"], reported["transactions"], reported["bytes"]) == (3, 3, len(record.value or b""))
    assert reported["sources"] == "transactions partition 0 offsets 0-2"
    assert [json.loads(item) for item in found] == [{"row": n, **json.loads(row)} for n, row in enumerate(rows)]


def test_one_row_is_shown_alone() -> None:
    record, rows = block()
    (found,) = shown(record, "profiled", 2)
    assert json.loads(found) == {"row": 2, **json.loads(rows[2])}
    with pytest.raises(click.ClickException, match="rows 0 to 2, and no row 3"):
        list(shown(record, "profiled", 3))


def test_what_is_no_block_is_named() -> None:
    with pytest.raises(click.ClickException, match="cannot be shown as a block: it is no block of rows"):
        list(shown(Record("profiled", 0, 0, 0, None, b"{}"), "profiled", None))
    record, _ = block()
    odd = Record("profiled", 0, 0, 0, None, changed(record.value, ingested_at_us=2**63 - 1))
    with pytest.raises(click.ClickException, match="what no message can say"):
        list(shown(odd, "profiled", None))


def test_another_record_is_shown_as_it_is() -> None:
    value = b'{"a": 1.50, "b": [ ]}'
    assert list(shown(Record("labels", 0, 0, 0, None, value), "labels", None)) == [value]
    with pytest.raises(click.ClickException, match="leave ROW out"):
        list(shown(Record("labels", 0, 0, 0, None, value), "labels", 0))
    with pytest.raises(click.ClickException, match="not JSON"):
        list(shown(Record("labels", 0, 0, 0, None, b"\xff"), "labels", None))
