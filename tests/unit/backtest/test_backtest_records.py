"""Records become the columns that their rows would give, and what is refused says why."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.backtest.input.acceptance import Acceptance, accept_labels, accept_transactions
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.merge import Numbering
from pipeline.backtest.input.topic_source import labels_of, transactions_of
from pipeline.engine.records.columns import Reject
from pipeline.kafka.readers.replay_reader import RecordColumns
from tests.contract.records import RATES
from tests.helpers.histories import Happening, busy_history, labels, transactions

RULES = Acceptance(RATES, 300_000_000)
NUMBERING = Numbering(8)


def records(history: list[Happening], kind: str) -> RecordColumns:
    fields = [(sent_record.fields, sent_record.at_us) for sent_record in history if sent_record.kind == kind]
    return columns(
        3,
        [msgspec.json.encode({k: v for k, v in f.items() if v is not None}) for f, _ in fields],
        [at_us // 1_000 for _, at_us in fields],
    )


def columns(partition: int, values: Sequence[bytes | None], timestamp_ms: Sequence[int]) -> RecordColumns:
    return RecordColumns(partition, np.arange(len(values)), np.array(timestamp_ms, np.int64), list(values))


def same(item: object, other: object, *, but: tuple[str, ...]) -> None:
    for name in item.__dataclass_fields__:  # type: ignore[attr-defined]
        left, right = getattr(item, name), getattr(other, name)
        if name in but:
            continue
        if isinstance(left, pa.Array):
            assert left.equals(right), name
        else:
            np.testing.assert_array_equal(left, right, err_msg=name)


def test_a_record_gives_what_its_row_gives() -> None:
    history = busy_history(4)
    rejects: list[Reject] = []
    part = transactions_of(records(history, "transaction"), RULES, NUMBERING, rejects)
    rows, refused = accept_transactions(transactions(history), RULES)
    same(part.rows, rows, but=("row",))
    assert part.rows.row.tolist() == [NUMBERING.row(3, row) for row in rows.row.tolist()]
    assert [(reject.code, NUMBERING.position(reject.row)) for reject in rejects] == [
        (reject.code, (3, reject.row)) for reject in refused
    ]
    assert rejects
    assert len(part.arrived_us) == len(part.rows)


def test_labels_are_noted_with_when_they_became_known() -> None:
    history, book = busy_history(5), LabelBook()
    rejects: list[Reject] = []
    part = labels_of(records(history, "label"), RULES, NUMBERING, rejects, book, "labels")
    rows, refused = accept_labels(labels(history), RULES)
    same(part.rows, rows, but=("row",))
    assert len(rejects) == len(refused) > 0
    noted = book.whole()
    assert noted["labelled_at"].astype("int64").tolist() == rows.known_at_us.tolist()
    assert noted["transaction_id"].tolist() == rows.transaction_id.to_pylist()


def test_what_is_no_message_is_refused_by_its_code() -> None:
    rejects: list[Reject] = []
    values = (None, b"garbage", b'{"transaction_id":"t"}')
    part = transactions_of(columns(1, values, [0, 0, 0]), RULES, NUMBERING, rejects)
    assert len(part.rows) == 0
    assert [(reject.code, NUMBERING.position(reject.row)) for reject in rejects] == [
        ("null_value", (1, 0)), ("not_json", (1, 1)), ("missing_field", (1, 2)),
    ]  # fmt: skip
