"""The benchmarks without Kafka run, small, and count what they should."""

from pathlib import Path

import pytest

from pipeline.engine.cards.transaction_index import StoreIndex
from tests.benchmarks import alone, columnar, forests, in_process, kernel_scale, report
from tests.benchmarks.stages import Stages
from tests.benchmarks.tables import as_text
from tests.benchmarks.traffic import Traffic


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of these runs go where the test's do."""
    for module in (alone, forests, kernel_scale):
        monkeypatch.setattr(module, "BUILD", tmp_path)


SMALL = in_process.Options(
    rows=3_000,
    batch_rows=500,
    partitions=2,
    traffic=Traffic(cards=300, merchants=100, history_days=2),
    # Many: legitimate ones are sampled, and few would leave none on some days.
    labelled=0.2,
    trees=5,
    leaves=7,
    training_cards=100,
)


def test_a_replay_decides_every_transaction_and_its_stages_are_all_of_its_time() -> None:
    outcome = in_process.run(SMALL)
    assert outcome.decisions == outcome.transactions == SMALL.rows
    assert outcome.labels > 0
    assert outcome.examples > 0
    row = outcome.row()
    assert sum(row["stages_us"].values()) == pytest.approx(row["us_a_transaction"], rel=0.25)
    assert set(row["stages_us"]) >= {"card: windows", "score: trees", "score: River", "file, handover"}
    for table in report.PARTS["in_process"].values():
        assert len(as_text(table(row)).splitlines()) > len(table(row).rows)


def test_a_replay_over_columns_decides_every_transaction() -> None:
    options = columnar.Options(
        rows=3_000,
        chunk_rows=500,
        partitions=2,
        traffic=Traffic(cards=300, merchants=100, history_days=2),
        trees=5,
        leaves=7,
        training_cards=100,
        labelled=0.2,
    )
    outcome = columnar.run_benchmark(options)
    assert outcome.transactions == options.rows
    assert outcome.labels > 0
    assert outcome.learning_s > 0
    row = outcome.row()
    assert set(row["stages_us"]) == {*columnar.STAGES, "file, order, handover"}
    assert "transactions a second" in columnar.describe(row)


def test_wrapped_methods_are_put_back() -> None:
    before = StoreIndex.fetch
    with Stages().around(in_process.STAGES):
        assert StoreIndex.fetch is not before
    assert StoreIndex.fetch is before


def test_a_nested_stage_counts_for_itself_alone() -> None:
    times = iter([0.0, 1.0, 4.0, 6.0])
    stages = Stages(lambda: next(times))
    with stages.stage("outer"), stages.stage("inner"):
        pass
    assert stages.seconds == {"outer": 3.0, "inner": 3.0}


def test_windows_are_measured_with_the_cards_that_were_asked_for() -> None:
    row = kernel_scale.windows_row(500, rows=1_000, batch=100, a_card=4)
    assert 450 <= row["cards"] <= 500
    assert row["transactions_a_second"] > row["with_names_a_second"] > 0
    assert row["bytes_a_card"] > 64


def test_a_restore_loads_what_was_replayed() -> None:
    row = kernel_scale.restore_row(1_000)
    assert row["transactions"] == 1_000
    assert row["snapshot_bytes"] > 10_000
    assert min(row["load_s"], row["fold_s"], row["write_s"]) > 0
