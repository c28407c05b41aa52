"""This project's own entries: job (a)'s kernel is held to the reference, and job (b)'s input has what it promises."""

from collections import Counter
from datetime import datetime
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from pipeline.engine.partition_state.state import LoadedState
from schemas.messages import Label, Transaction
from schemas.records import Record
from schemas.topics import DECISIONS
from tests.benchmarks import pipeline_scale
from tests.benchmarks.job import prepare, reference
from tests.benchmarks.job.check import check
from tests.benchmarks.job.windows import Decision
from tests.benchmarks.ours import job
from tests.benchmarks.ours.job import DUPLICATE, LABELLED_AFTER_MS, LATE, LATEST_MS, arrivals
from tests.benchmarks.ours.kernel import Models, OneHopPartition
from tests.helpers.memory_columns import MemoryColumn

RECORDS = 3_000


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return prepare.transactions(RECORDS)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame) -> Path:
    """The job's files with smaller models."""
    directory = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TREES", 5), ("TRAINING_RECORDS", RECORDS), ("RIVER_EXAMPLES", 500)):
            patch.setattr(prepare, name, value)
        prepare.write_job(directory)
    return directory


@pytest.fixture(scope="module")
def records(frame: pd.DataFrame) -> list[Record]:
    return [
        Record("in", 0, offset, time_ms, card.encode(), value)
        for offset, (value, card, time_ms) in enumerate(
            zip(prepare.encoded(frame), frame["card_id"], frame["time_ms"].tolist(), strict=True)
        )
    ]


def decided(partition: OneHopPartition, records: list[Record], batch: int) -> list[Decision]:
    found = []
    for start in range(0, len(records), batch):
        outputs = partition.process(records[start : start + batch]).outputs
        partition.commit()
        found += [msgspec.json.decode(output.value or b"", type=Decision) for output in outputs]
        assert {output.topic for output in outputs} == {DECISIONS}
        assert [(output.key or b"").decode() for output in outputs] == [
            transaction.card_id for transaction in found[start:]
        ]
    return found


def frame_of(decisions: list[Decision]) -> pd.DataFrame:
    return pd.DataFrame([msgspec.structs.asdict(decision) for decision in decisions]).set_index("transaction_id")


def test_the_kernel_gives_the_reference_s_answers(frame: pd.DataFrame, workdir: Path, records: list[Record]) -> None:
    decisions = decided(OneHopPartition(Models(workdir), DECISIONS), records, 700)
    check(frame_of(decisions), reference.decisions(frame, workdir))


def test_its_state_is_taken_back_replayed_and_loaded(workdir: Path, records: list[Record]) -> None:
    models, half = Models(workdir), RECORDS // 2
    whole = OneHopPartition(models, DECISIONS)
    decided(whole, records[:half], 500)
    expected = whole.process(records[half:]).outputs
    whole.rollback()
    assert whole.process(records[half:]).outputs == expected
    whole.rollback()
    values, columns, _ = whole.dump(full=True)
    saved = {name: MemoryColumn(pages.dtype, pages.items, pages.changed) for name, pages in columns.items()}
    loaded = OneHopPartition(models, DECISIONS, loaded=LoadedState(values, saved))
    assert loaded.process(records[half:]).outputs == expected
    replayed = OneHopPartition(models, DECISIONS)
    replayed.replay(records[:half])
    assert replayed.process(records[half:]).outputs == expected


def test_some_arrive_late_twice_or_with_a_label(frame: pd.DataFrame) -> None:
    made = arrivals(frame)
    assert made == arrivals(frame)
    assert len(made.accepted) == len(set(made.accepted)) == RECORDS
    read = [msgspec.json.decode(value, type=Transaction) for _, _, value, _ in made.transactions]
    counts = Counter((transaction.card_id, transaction.transaction_id) for transaction in read)
    assert set(counts) == set(made.accepted)
    assert set(counts.values()) == {1, 2}
    moments = [moment for *_, moment in made.transactions]
    assert moments == sorted(moments)
    behind_ms = [moment - milliseconds(item.event_time) for item, moment in zip(read, moments, strict=True)]
    assert 0 == min(behind_ms) < max(behind_ms) < LATEST_MS + prepare.RECORDS_PER_CARD * 3_600_000
    late = sum(ms > 0 for ms in behind_ms)
    assert late == pytest.approx(RECORDS * (LATE + DUPLICATE), rel=0.5)


def test_a_purchase_of_nothing_is_left_out(frame: pd.DataFrame) -> None:
    frame = frame.copy()
    frame.loc[7, "cents"] = 0
    made = arrivals(frame)
    assert len(made.accepted) == RECORDS - 1
    assert (frame["card_id"][7], frame["transaction_id"][7]) not in made.accepted


def test_labels_follow_their_transactions_and_tell_the_truth(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "LABELLED", 0.5)
    made = arrivals(frame)
    fraud = dict(zip(frame["transaction_id"], frame["fraud"], strict=True))
    first: dict[str, int] = {}
    for *_, value, moment in made.transactions:
        first.setdefault(msgspec.json.decode(value, type=Transaction).transaction_id, moment)
    assert len(made.labels) == pytest.approx(RECORDS * 0.5, rel=0.1)
    for _, key, value, moment in made.labels:
        label = msgspec.json.decode(value, type=Label)
        assert key.decode() == label.card_id
        assert moment == first[label.transaction_id] + LABELLED_AFTER_MS == milliseconds(label.labelled_at)
        assert label.label == ("fraud" if fraud[label.transaction_id] else "legitimate")


def test_the_scale_s_settings_come_once() -> None:
    made = list(pipeline_scale.settings(pipeline_scale.Options(partitions=(1, 4), workers=(1, 2))))
    assert made == [(1, 1), (4, 1), (4, 2)]


def milliseconds(time: datetime) -> int:
    return round(1_000 * time.timestamp())
