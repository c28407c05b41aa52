"""What librdkafka hands over, without librdkafka."""

from confluent_kafka import KafkaError

from schemas.records import Record


class ClientMessage:
    """A record, or an error, at a place of a log."""

    def __init__(self, partition: tuple[str, int], offset: int, record: Record | None = None, code: int = 0) -> None:
        self._partition, self._offset, self._record, self._code = partition, offset, record, code

    def error(self) -> KafkaError | None:
        return KafkaError(self._code) if self._record is None else None

    def topic(self) -> str:
        return self._partition[0]

    def partition(self) -> int:
        return self._partition[1]

    def offset(self) -> int:
        return self._offset

    def __len__(self) -> int:
        return 0 if self._record is None else len(self._record.value or b"")

    def _of(self) -> Record:
        assert self._record is not None
        return self._record

    def timestamp(self) -> tuple[int, int]:
        return 1, self._of().timestamp_ms

    def key(self) -> bytes | None:
        return self._of().key

    def value(self) -> bytes | None:
        return self._of().value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return list(self._of().headers) or None


def message_of(record: Record) -> ClientMessage:
    return ClientMessage((record.topic, record.partition), record.offset, record)
