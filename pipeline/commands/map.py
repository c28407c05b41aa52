"""``fraud-pipeline map``: propose, check and publish a mapping of a producer's own JSON."""

import codecs
import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from pipeline.history.canonical_columns import NO_TRUTH, truth_of
from pipeline.history.files import TABLES, column_names
from pipeline.history.mapped_files import file_records
from pipeline.history.mapping_proposal import propose_mapping
from pipeline.observability.terminal import printable, printable_json
from pipeline.settings import Settings
from pipeline.settings.mapping_file import mapping_of
from pipeline.settings.rate_table import load_rates
from schemas.codec import MAX_NESTING, MAX_VALUE_BYTES, decode_transaction, is_too_deep
from schemas.errors import InvalidMessage
from schemas.mapping import FieldMapping, InvalidMapping, Mapper, read_mapping

MAX_RECORDS: Final = 1_000
MAX_SAMPLE_BYTES: Final = 64 * 1024 * 1024
_SHOWN_ROWS: Final = 5
_COLUMNS: Final = 80
_BYTE: Final = re.compile(r"\(byte ([0-9]+)\)")
_decode: Final = msgspec.json.Decoder(float_hook=Decimal).decode
_decode_raw: Final = msgspec.json.Decoder(msgspec.Raw).decode
_decode_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class UnusableSample(click.ClickException):
    """A sample that cannot be read; the text says where and what to do."""


@click.command("map")
@click.argument("sample", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--mapping",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Check this mapping file against SAMPLE; propose none.",
)
@click.option(
    "--publish",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Publish this mapping file, and list all that are published.",
)
def command(*, sample: Path | None, mapping: Path | None, publish: Path | None) -> None:
    """Propose a mapping of your own JSON in SAMPLE as TOML, and show what it makes of the records.

    SAMPLE holds one object a line, an array of objects, or one object, or is a .parquet or .csv file, whose rows are
    objects; the first 1,000 are looked at. The proposal goes to standard output; rows and counts go to standard error.
    With --mapping they go to standard output, and the exit code is 1 if a record is refused.
    """
    if (sample is None) == (publish is None) or (publish is not None and mapping is not None):
        raise click.UsageError("Give either a SAMPLE, with or without --mapping, or --publish alone.")
    settings = Settings()
    if publish is not None:
        _publish(mapping_of(publish), settings)
    if sample is None:
        return
    given = None if mapping is None else mapping_of(mapping)
    is_table = sample.name.lower().endswith(TABLES)
    try:
        if is_table:
            records = next(file_records(sample, column_names(sample), MAX_RECORDS), [])
        else:
            with click.open_file(str(sample), "rb") as file:
                records = read_sample(file.read(MAX_SAMPLE_BYTES + 1))
    except UnusableSample as error:
        raise UnusableSample(f"{printable(str(sample))}: {error.message}") from error
    if given is not None:
        if _show(records, given, settings, is_table=is_table, err=False):
            raise click.exceptions.Exit(1)
        return
    text = propose_mapping(map(_decode, records))
    click.echo(text, nl=False)
    try:
        proposed = read_mapping(text.encode())
    except InvalidMapping as error:
        click.echo(f"Complete the mapping, and check it with --mapping: {printable(str(error))}.", err=True)
    else:
        _show(records, proposed, settings, is_table=is_table, err=True)


def read_sample(content: bytes) -> list[bytes]:
    """Return the first records of a sample, each the JSON of an object.

    Raises:
        UnusableSample: It holds something else.
    """
    if len(content) > MAX_SAMPLE_BYTES:
        raise UnusableSample(f"it is larger than {MAX_SAMPLE_BYTES:,} bytes; give a part of it")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnusableSample(f"line {line} is not UTF-8; encode the file as UTF-8") from error
    records = list(islice(_split(content), MAX_RECORDS))
    if not records:
        raise UnusableSample("it holds no record; give a file with one JSON object a line")
    for line, record in records:
        if len(record) > MAX_VALUE_BYTES:
            raise UnusableSample(
                f"the record on line {line} has {len(record):,} bytes, and may have {MAX_VALUE_BYTES:,}; take it out"
            )
        if not isinstance(_decoded(_decode_record, record, line), dict):
            raise UnusableSample(f"what stands on line {line} is no JSON object; write one object a record")
    return [record for _, record in records]


def _split(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each record with the number of its first line."""
    if content.lstrip().startswith(b"["):
        at = 0
        for record in map(bytes, _decoded(_decode_array, content, 1)):
            start = content.index(record, at)
            yield 1 + content.count(b"\n", 0, start), record
            at = start + len(record)
        return
    try:
        _decode_raw(content)
        yield 1, content
    except (msgspec.DecodeError, RecursionError) as error:
        if "trailing characters" in str(error):
            yield from ((line, record) for line, record in enumerate(io.BytesIO(content), 1) if record.strip())
        elif content.strip():
            yield 1, content


def _decode_record(record: bytes) -> Any:
    if is_too_deep(record):
        raise RecursionError
    return _decode(record)


def _decoded(decode: Callable[[bytes], Any], content: bytes, line: int) -> Any:
    """Return decoded JSON that begins on a line."""
    try:
        return decode(content)
    except RecursionError as error:
        raise UnusableSample(f"line {line} is nested more than {MAX_NESTING} deep; take the record out") from error
    except ArithmeticError as error:
        raise UnusableSample(f"the record on line {line} has a number that is out of range; take it out") from error
    except msgspec.MsgspecError as error:
        byte = _BYTE.search(str(error))
        line += content.count(b"\n", 0, len(content.rstrip()) if byte is None else int(byte[1]))
        raise UnusableSample(f"line {line} cannot be read as JSON ({error}); write one object a line") from error


def _show(records: Sequence[bytes], mapping: FieldMapping, settings: Settings, *, is_table: bool, err: bool) -> int:
    """Print mapped rows, the first refusal and the counts; return how many records are refused.

    The rows of a table need a truth each where the mapping names it; a record without one may be a message.
    """
    rates, now_us = load_rates(settings), time.time_ns() // 1_000
    tolerance_us = round(settings.future_tolerance_s * 1e6)
    mapper, refused, reason = Mapper(mapping, rates, truth=True), Counter[str](), ""
    columns = _COLUMNS if click.get_text_stream("stderr" if err else "stdout").isatty() else None
    for number, record in enumerate(records, 1):
        try:
            row, fields = mapper.row(record)
            if number <= _SHOWN_ROWS:
                click.echo(printable_json(row.decode())[:columns], err=err)
            decode_transaction(row, record_timestamp_us=now_us, future_tolerance_us=tolerance_us, rates=rates)
            if "fraud" in mapping.fields and truth_of(fields.get("fraud", None if is_table else False)) is None:
                raise InvalidMessage("invalid_value", f"fraud {NO_TRUTH}.")
        except InvalidMessage as error:
            reason = reason or f"Record {number} is refused as {error.code}: {error}"
            refused[error.code] += 1
    if reason:
        click.echo(printable(reason), err=err)
    codes = ", ".join(f"{code} {count:,}" for code, count in refused.most_common())
    accepted = len(records) - refused.total()
    click.echo(f"{accepted:,} accepted, {refused.total():,} refused{f': {codes}' if codes else ''}", err=err)
    return refused.total()


def _publish(mapping: FieldMapping, settings: Settings) -> None:
    # Kafka's clients take longer to import than a proposal to make.
    from pipeline.broker.running import find_cluster
    from pipeline.models.published_files import MAPPING, PublishedFiles

    published = PublishedFiles(find_cluster(settings), settings)
    published.publish(MAPPING, mapping.content)
    for version, digest in published.versions(MAPPING):
        click.echo(f"{digest}  {printable(version)}")
