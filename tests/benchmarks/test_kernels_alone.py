"""The benchmarks without Kafka run, small, and count what they should."""

from pathlib import Path

import pytest

from pipeline.engine.cards.transaction_index import StoreIndex
from tests.benchmarks import alone, columnar, forests, in_process, kernel_scale
from tests.benchmarks.stages import Stages
from tests.benchmarks.traffic import Traffic


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of these runs go where the test's do."""
    for module in (alone, forests):
        monkeypatch.setattr(module, "BUILD", tmp_path)


TRAFFIC = Traffic(cards=300, merchants=100, history_days=2)
LABELLED = 0.2
"""Many: legitimate ones are sampled, and few would leave none on some days."""


def test_replays_decide_every_transaction_and_tell_their_stages() -> None:
    options = in_process.Options(
        rows=3_000, batch_rows=500, partitions=2, traffic=TRAFFIC, labelled=LABELLED, trees=5, leaves=7,
        training_cards=100,
    )  # fmt: skip
    found = in_process.measure(options, print)
    assert found["transactions"] == options.rows
    assert min(found["labels"], found["examples"]) > 0
    assert set(found["stages_us"]) >= {"card: windows", "score: trees", "score: River", "file, handover"}
    columns = columnar.Options(
        rows=3_000, chunk_rows=500, partitions=2, traffic=TRAFFIC, labelled=LABELLED, trees=5, leaves=7,
        training_cards=100,
    )  # fmt: skip
    found = columnar.measure(columns, print)
    assert found["transactions"] == columns.rows
    assert min(found["labels"], found["learning_us_a_transaction"]) > 0
    assert set(found["stages_us"]) == {*columnar.STAGES, "file, order, handover"}


def test_stages_nest_and_wrapped_methods_are_put_back() -> None:
    before = StoreIndex.fetch
    with Stages().around(in_process.STAGES):
        assert StoreIndex.fetch is not before
    assert StoreIndex.fetch is before
    times = iter([0.0, 1.0, 4.0, 6.0])
    stages = Stages(lambda: next(times))
    with stages.stage("outer"), stages.stage("inner"):
        pass
    assert stages.seconds == {"outer": 3.0, "inner": 3.0}


def test_kernels_grow_as_they_were_asked_to() -> None:
    options = kernel_scale.Options(
        only=("cards", "state"), cards=(500,), rows=1_000, restored=(1_000,),
    )  # fmt: skip
    found = kernel_scale.measure(options, print)
    assert set(found) == set(options.only)
    (cards,), (restored,) = found["cards"], found["state"]
    assert 450 <= cards["cards"] <= 500
    assert cards["bytes_a_card"] > 64
    assert restored["transactions"] == 1_000
    assert restored["snapshot_bytes"] > 10_000
