"""``fraud-pipeline dead-letters``: list, explain and resend records that were not accepted."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypedDict, Unpack

import click

from pipeline.broker.running import ClusterNotFound, cluster_or_last_run, find_cluster
from pipeline.commands.option_groups import option_group
from pipeline.commands.option_types import Moment
from pipeline.decision.reason_texts import count
from pipeline.kafka.cluster.log_offsets import starts_at
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.writers.producer import DeliveryFailed, RecordProducer
from pipeline.observability.logs import silence_clients
from pipeline.observability.terminal import printable
from pipeline.settings import Settings
from schemas.records import Headers, Record
from schemas.times import utc_text
from schemas.topics import DEAD_LETTERS, TRANSACTIONS

RESENT: Final = "fraud-pipeline-resent"
"""Header of a record that was sent again: how many times."""
_MOST_DIGITS: Final = 15
"""Most digits of a number in a header; producers may send any."""
_LATEST_MS: Final = round(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000
REPAIR: Final = "It would be refused again as it is: repair it at its producer, or in its mapping."
ADVICE: Final = {
    "currency_unknown": "Add the currency to the rate table (FRAUD_PIPELINE_RATES_FILE), then resend it.",
    "event_time_in_future": "Once its time has passed, or FRAUD_PIPELINE_FUTURE_TOLERANCE_S is longer, resend it.",
    "labelled_at_in_future": "Once its time has passed, or FRAUD_PIPELINE_FUTURE_TOLERANCE_S is longer, resend it.",
    "label_without_transaction": "Once its transaction has been accepted, resend it; one that came too late does so "
    "again.",
    "too_many_waiting": "Once its transaction has been accepted, resend it.",
    "set_aside": "An error of the pipeline: once a release mends it, resend it.",
}
"""Advice about codes whose records may pass unchanged; `REPAIR` for the others."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of ``dead-letters``, by what its headers say."""

    record: Record
    own: Mapping[str, str]
    """Headers that the agent added, without their prefix ``dead-letter-``."""
    headers: Headers
    """Those that the record had."""
    topic: str
    """Topic of the original record, without prefix."""

    @classmethod
    def from_record(cls, record: Record, prefix: str = "") -> "DeadLetter":
        """Read the headers; a producer may have sent some of the same names, which stand before the agent's."""
        names = [name for name, _ in record.headers]
        begin = len(names) - 1 - names[::-1].index("dead-letter-topic") if "dead-letter-topic" in names else len(names)
        own = {
            name.removeprefix("dead-letter-"): (value or b"").decode("utf-8", "replace")
            for name, value in record.headers[begin:]
        }
        return cls(record, own, record.headers[:begin], own.get("topic", "?").removeprefix(prefix))

    @property
    def code(self) -> str:
        """Stable code of the reason."""
        return self.own.get("error", "?")

    @property
    def resent(self) -> int:
        """Return the number of times it had been sent again before."""
        values = [value for name, value in self.headers if name == RESENT]
        return _number(values[-1] or b"", 0) if values else 0

    def obstacle(self, inputs: Collection[str]) -> str:
        """Return why it cannot be sent again; nothing where it can. ``inputs`` are the topics that producers write."""
        if "end" in self.own:
            return "a range of offsets that nobody could read"
        if self.topic not in inputs:
            return f"of topic {printable(self.topic)}, which is none that producers write to"
        if "row" in self.own:
            return "a row of a block"
        left_out = [part for part in ("key", "value") if f"{part}-bytes" in self.own]
        if left_out or "headers" in self.own:
            return "left out of its dead letter, for its size or as redacted: produce the original"
        return "without a value" if self.record.value is None else ""

    def line(self) -> str:
        """Return it on one line, without what it holds."""
        time = utc_text(refused_at(self.record))
        again = f", resent {count(self.resent, 'time')} before" if self.resent else ""
        position = f"{self.topic} {self.own.get('partition', '?')}/{self.own.get('offset', '?')}"
        at = f"{self.record.partition}/{self.record.offset}"
        return f"{at}  {time}  {printable(self.code)}  of {printable(position)}{again}"

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object, without what it holds."""
        return {
            "position": f"{self.record.partition}/{self.record.offset}",
            "refused_at": refused_at(self.record).isoformat(),
            "resent": self.resent,
            **self.own,
        }


def refused_at(record: Record) -> datetime:
    """Return the time of a record of ``dead-letters``, within the years that a calendar has."""
    return datetime.fromtimestamp(min(max(record.timestamp_ms, 0), _LATEST_MS) / 1_000, UTC)


def _number(text: bytes, default: int) -> int:
    return int(text) if text.isdigit() and len(text) <= _MOST_DIGITS else default


class Filters(TypedDict):
    """The filters that select dead letters."""

    codes: tuple[str, ...]
    topics: tuple[str, ...]
    since: datetime | None
    until: datetime | None
    positions: tuple[str, ...]


filters = option_group(
    click.option("--until", type=Moment(), help="Refused before this time."),
    click.option("--since", type=Moment(), help="Refused at this time or later."),
    click.option("--topic", "topics", multiple=True, help="Of this original topic; may be repeated."),
    click.option("--code", "codes", multiple=True, help="Of this reason, such as currency_unknown; may be repeated."),
    click.argument("positions", nargs=-1, metavar="[PARTITION/OFFSET]..."),
)


def chosen(records: Iterable[Record], given: Filters, prefix: str = "") -> Iterator[DeadLetter]:
    """Yield the dead letters that pass the filters.

    Args:
        records: Records of ``dead-letters``; their order stays.
        given: The filters; an empty one, or None, passes all. ``since`` is inclusive, ``until`` is not.
        prefix: Prefix of the names of original topics, which is removed from them.
    """
    since, until = given["since"], given["until"]
    for record in records:
        at = refused_at(record)
        if (since is not None and at < since) or (until is not None and at >= until):
            continue
        if given["positions"] and f"{record.partition}/{record.offset}" not in given["positions"]:
            continue
        letter = DeadLetter.from_record(record, prefix)
        if given["codes"] and letter.code not in given["codes"]:
            continue
        if not given["topics"] or letter.topic in given["topics"]:
            yield letter


def read_letters(bootstrap: str, settings: Settings, given: Filters) -> list[DeadLetter]:
    """Return the dead letters that are meant, by the time of their refusal; raises `TopicError`."""
    topic, since = settings.topic(DEAD_LETTERS.name), given["since"]
    start = None
    if since is not None:
        start = starts_at(bootstrap, topic, round(since.timestamp() * 1_000), settings=settings)
    records = read_topic(bootstrap, topic, settings=settings, start=start)
    return sorted(chosen(records, given, settings.topic_prefix), key=lambda letter: letter.record.timestamp_ms)


def resend(producer: RecordProducer, settings: Settings, letters: Sequence[DeadLetter]) -> None:
    """Produce the original bytes to their topics, each marked by the header `RESENT`.

    Args:
        producer: Writes them; the caller waits until they are written.
        settings: Their prefix begins the names of topics.
        letters: The dead letters, in the order in which they are sent.
    """
    for letter in letters:
        headers = [(name, value) for name, value in letter.headers if name != RESENT]
        headers.append((RESENT, str(letter.resent + 1).encode()))
        record = letter.record
        arrived_ms = _number(letter.own.get("timestamp-ms", "").encode(), record.timestamp_ms)
        producer.produce(settings.topic(letter.topic), record.key, record.value or b"", arrived_ms, headers)


def summary(letters: Sequence[DeadLetter]) -> Iterator[str]:
    """Yield how many there are of each code and topic, the most frequent first."""
    found = Counter((letter.topic, letter.code) for letter in letters)
    for (topic, code), n in found.most_common():
        yield f"{n:>9,}  {printable(code)} of {printable(topic)}: {ADVICE.get(code, REPAIR)}"


@click.group()
def command() -> None:
    """List, explain and resend records that were not accepted."""


@command.command("list")
@filters
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Show the newest of them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, all of them, without what they hold.")
def list_command(*, limit: int, as_json: bool, **given: Unpack[Filters]) -> None:
    """Count dead letters by reason, and show where the newest lie."""
    letters = _read(given)
    if as_json:
        for letter in letters:
            click.echo(json.dumps(letter.as_json()))
        return
    if not letters:
        click.echo("There are no such dead letters.")
        return
    for line in summary(letters):
        click.echo(line)
    shown = letters[len(letters) - min(limit, len(letters)) :]
    if shown:
        click.echo("\npartition/offset in dead-letters, when it was refused, why, where the record lies:")
    for letter in shown:
        click.echo(letter.line())
    click.echo("\n`fraud-pipeline dead-letters explain PARTITION/OFFSET` tells more, `resend` sends again.")


@command.command("explain")
@filters
@click.option("--value", "with_value", is_flag=True, help="Show the record's value too; it may hold personal data.")
def explain_command(*, with_value: bool, **given: Unpack[Filters]) -> None:
    """Say why records were refused, and what to do."""
    letters, inputs = _read(given), _inputs(Settings())
    for letter in letters:
        click.echo(letter.line())
        click.echo(f"  refused by: {printable(letter.own.get('stage', '?'))} agent")
        click.echo(f"  reason:     {printable(letter.own.get('message', '?'))}")
        obstacle = letter.obstacle(inputs)
        click.echo(f"  what to do: {f'Not to be resent: {obstacle}.' if obstacle else ADVICE.get(letter.code, REPAIR)}")
        if with_value:
            click.echo(f"  value:      {printable((letter.record.value or b'').decode('utf-8', 'backslashreplace'))}")
    if not letters:
        click.echo("There are no such dead letters.")


@command.command("resend")
@filters
@click.option("--yes", is_flag=True, help="Do not ask.")
def resend_command(*, yes: bool, **given: Unpack[Filters]) -> None:
    """Send records again: the original bytes, to the original topic, with the header fraud-pipeline-resent.

    Name positions or give a filter. Each counts as a new record; one that was accepted meanwhile is a repeat, and emits
    nothing. One that is refused again is a dead letter with that header.
    """
    if not any(given.values()):
        raise click.UsageError("name positions (PARTITION/OFFSET), or give --code, --topic, --since or --until")
    settings = Settings()
    found = [(letter, letter.obstacle(_inputs(settings))) for letter in _read(given)]
    for obstacle, n in Counter(obstacle for _, obstacle in found if obstacle).items():
        click.echo(f"{n:,} are not resent: {obstacle}.", err=True)
    ready = [letter for letter, obstacle in found if not obstacle]
    if not ready:
        click.echo("Nothing to resend.", err=True)
        return
    for line in summary(ready):
        click.echo(line, err=True)
    into = " and ".join(f"{n:,} to {topic}" for topic, n in sorted(Counter(letter.topic for letter in ready).items()))
    if not yes:
        click.confirm(f"Send {into}?", abort=True, err=True)
    try:
        with RecordProducer(find_cluster(settings), settings) as producer:
            resend(producer, settings, ready)
    except (ClusterNotFound, DeliveryFailed) as error:
        raise click.ClickException(f"{error}. Some may have been sent: repeats do no harm, so resend all") from error
    click.echo(f"Sent {into}. `fraud-pipeline dead-letters list` shows what is refused again.")


def _inputs(settings: Settings) -> set[str]:
    return {TRANSACTIONS.name, *settings.label_topics}


def _read(given: Filters) -> list[DeadLetter]:
    settings = Settings()
    silence_clients()
    for position in given["positions"]:
        partition, _, offset = position.partition("/")
        if not (partition.isdigit() and offset.isdigit()):
            raise click.UsageError(f"{position!r} is no position; write it as PARTITION/OFFSET, such as 0/17")
    with cluster_or_last_run(settings, partial(click.echo, err=True)) as bootstrap:
        return read_letters(bootstrap, settings, given)
