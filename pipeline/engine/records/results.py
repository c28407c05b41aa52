"""The result of an engine's batch: records to write, and counts of what happened."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pipeline.engine.records.whole_amounts import AmountCounts
from schemas.codec import MAX_VALUE_BYTES
from schemas.records import Headers, Output, Record
from schemas.topics import DEAD_LETTERS

KEPT_BYTES: Final = MAX_VALUE_BYTES
"""Most bytes of a record that its dead letter repeats: those of the largest record that may be accepted.

A topic limits what is written to it as it is compressed, so that a small batch may hold a record of any size. Its dead
letter must fit whatever it is compressed with, or the record could be neither read nor refused.
"""
_TEXT_LIMIT: Final = 1_000
_FIRST_OWN: Final = "dead-letter-topic"
_MESSAGE: Final = "dead-letter-message"
_DIGEST: Final = "-sha256"


@dataclass(slots=True)
class Result:
    """Outputs of one batch, to be committed together with its input offsets, and its counts.

    ``counts`` has (what, detail) keys, such as ``("dead_letter", "not_json")`` or ``("label", "first")``.
    """

    outputs: list[Output] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    """Latencies from ingestion to decision, one a decision."""
    given_up: list[str] = field(default_factory=list)
    """Topic, partition and offset of labels that learning may have lost."""
    amounts: AmountCounts = field(default_factory=Counter)
    """Amounts that were looked at for decimals."""

    def unreadable(self, record: Record, agent: str, reason: object) -> None:
        """Refuse a record of a topic that only the pipeline's own agents write, and that is no message of theirs.

        Args:
            record: The record.
            agent: Name of the agent that refuses it, such as ``score``.
            reason: Its text begins the sentence of the dead letter.
        """
        self.dead_letter(
            record,
            agent,
            "unreadable",
            f"{reason}; only this pipeline's agents, all of one release, may write to this topic: find what else did.",
        )

    def dead_letter(
        self,
        record: Record,
        stage: str,
        code: str,
        message: str,
        *,
        kept_bytes: int = KEPT_BYTES,
        end: int | None = None,
        first: tuple[int, int] | None = None,
        row: int | None = None,
    ) -> None:
        """Refuse a record: write its dead letter, with original key, value and headers, and where it came from.

        Args:
            record: The record.
            stage: The agent that refuses it.
            code: Code as in ``docs/dead-letters.md``.
            message: Sentence for whoever sent it.
            kept_bytes: Of a larger record the value is left out, and key and headers too where they alone are more;
                size and digest then show what was there.
            end: Offset behind the records that it stands for, which nobody could read.
            first: Partition and offset of a record that it contradicts.
            row: Row of a block of which ``record`` has the producer's own bytes.
        """
        key, value, headers, left_out = _kept(record, kept_bytes)
        reason: Headers = (
            (_FIRST_OWN, record.topic.encode()),
            ("dead-letter-partition", str(record.partition).encode()),
            ("dead-letter-offset", str(record.offset).encode()),
            *(() if row is None else (("dead-letter-row", str(row).encode()),)),
            *(() if end is None else (("dead-letter-end", str(end).encode()),)),
            ("dead-letter-timestamp-ms", str(record.timestamp_ms).encode()),
            ("dead-letter-stage", stage.encode()),
            ("dead-letter-error", code.encode()),
            *(
                (f"dead-letter-first-{what}", str(number).encode())
                for what, number in zip(("partition", "offset"), first or (), strict=False)
            ),
            (_MESSAGE, message[:_TEXT_LIMIT].encode("utf-8", "backslashreplace")),
        )
        self.outputs.append(Output(DEAD_LETTERS, key, value, (*headers, *reason, *left_out)))
        self.counts["dead_letter", code] += 1


def redacted(letter: Output) -> Output:
    """Return a dead letter without anything that its record holds: neither key nor value nor headers.

    What is left says where the record is, how large it is, and why it was refused, by code: sentences may repeat a
    value, and whoever tries all card numbers finds the one that has a digest.
    """
    names = [name for name, _ in letter.headers]
    # Producers may use such names too; the dead letter's own come last.
    own = len(names) - names[::-1].index(_FIRST_OWN) - 1
    size = () if letter.value is None else _size_and_digest("value", letter.value)
    headers = (*letter.headers[own:], *size)
    kept = tuple((name, content) for name, content in headers if name != _MESSAGE and not name.endswith(_DIGEST))
    return Output(letter.topic, None, None, kept, letter.partition)


def merged(results: Iterable[Result]) -> Result:
    """Return one result of several partitions' results."""
    whole = Result()
    for result in results:
        whole.outputs += result.outputs
        whole.counts += result.counts
        whole.latencies_s += result.latencies_s
        whole.given_up += result.given_up
        whole.amounts += result.amounts
    return whole


def _kept(record: Record, most_bytes: int) -> tuple[bytes | None, bytes | None, Headers, Headers]:
    """Key, value and headers as far as they fit, and headers that name what was left out."""
    key, value, headers = record.key, record.value, record.headers
    value_bytes = len(value or b"")
    other_bytes = record.other_bytes
    left_out: Headers = ()
    if value is not None and value_bytes + other_bytes > most_bytes:
        left_out = _size_and_digest("value", value)
        value = None
    # A key as any card's is no burden, and says whose record it was.
    if other_bytes > max(most_bytes, _TEXT_LIMIT):
        if key is not None:
            left_out += _size_and_digest("key", key)
        left_out += (("dead-letter-headers", str(len(headers)).encode()),)
        key, headers = None, ()
    return key, value, headers, left_out


def _size_and_digest(part: str, content: bytes) -> Headers:
    return (
        (f"dead-letter-{part}-bytes", str(len(content)).encode()),
        (f"dead-letter-{part}{_DIGEST}", hashlib.sha256(content).hexdigest().encode()),
    )
