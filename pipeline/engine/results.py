"""What an engine hands back for a batch: records to write, and counts of what happened."""

from collections import Counter
from dataclasses import dataclass, field

from schemas.records import Headers, Output, Record
from schemas.topics import DEAD_LETTERS

_TEXT_LIMIT = 1_000


class UnreadableRecord(RuntimeError):
    """A record of a topic that only the pipeline's own agents write is not a message of theirs."""

    def __init__(self, record: Record, cause: Exception) -> None:
        super().__init__(
            f"{record.topic} partition {record.partition} offset {record.offset} cannot be read ({cause}): only this "
            "pipeline's agents, all of one release, may write to that topic; find what else did. Nothing of the "
            "batch that holds the record is committed"
        )


@dataclass(slots=True)
class Result:
    """Outputs of one batch, to be committed together with its input offsets, and its counts.

    ``counts`` has (what, detail) keys, such as ``("dead_letter", "not_json")`` or ``("label", "first")``.
    """

    outputs: list[Output] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    """From ingestion to decision, one a decision."""

    def dead_letter(self, record: Record, stage: str, code: str, message: str) -> None:
        """Set ``record`` aside with its reason: original key, value and headers, and where it came from."""
        reason: Headers = (
            ("dead-letter-topic", record.topic.encode()),
            ("dead-letter-partition", str(record.partition).encode()),
            ("dead-letter-offset", str(record.offset).encode()),
            ("dead-letter-timestamp-ms", str(record.timestamp_ms).encode()),
            ("dead-letter-stage", stage.encode()),
            ("dead-letter-error", code.encode()),
            ("dead-letter-message", message[:_TEXT_LIMIT].encode("utf-8", "backslashreplace")),
        )
        self.outputs.append(Output(DEAD_LETTERS, record.key, record.value, (*record.headers, *reason)))
        self.counts["dead_letter", code] += 1
