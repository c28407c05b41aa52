"""When a node's old session must be ended before it starts."""

from pathlib import Path

from pipeline.broker.fencing import crashed


def test_a_node_has_crashed_when_it_has_run_and_was_not_stopped(tmp_path: Path) -> None:
    assert not crashed(tmp_path)
    metadata = tmp_path / "__cluster_metadata-0"
    metadata.mkdir()
    # What formatting leaves.
    (metadata / "00000000000000000000-0000000000.checkpoint").touch()
    assert not crashed(tmp_path)
    (metadata / "00000000000000000000.log").touch()
    assert crashed(tmp_path)
    (tmp_path / ".kafka_cleanshutdown").touch()
    assert not crashed(tmp_path)
