"""The state that the workers left, in three ways that must agree to the bit."""

from pathlib import Path

from pipeline.settings import Settings
from tests.chaos.run import Check
from tests.helpers.digests import recorded_digests, restored_digests


def states_are_functions_of_the_log(bootstrap: str, settings: Settings, directory: Path) -> Check:
    """Compare the digests of the last snapshots, of the log alone, and of a recorded backtest.

    Args:
        bootstrap: Addresses of brokers.
        settings: The workers' settings, with the address of their snapshots; no worker runs any more.
        directory: For state that is restored.
    """
    check = Check("states are functions of the log: snapshot, log, backtest")
    snapshots, replayed = restored_digests(bootstrap, settings, directory / "snapshots")
    log, all_records = restored_digests(bootstrap, settings.model_copy(update={"snapshot_url": ""}), directory / "log")
    backtest = recorded_digests(bootstrap, settings)
    check.count("records_replayed_from_the_log", all_records)
    check.count("records_covered_by_snapshots", all_records - replayed)
    for (agent, partition), digest in sorted(snapshots.items()):
        where = f"{agent} partition {partition}"
        check.count(f"{agent}_partitions")
        check.same(f"{where}: the log alone beside the snapshot", log[agent, partition], digest)
        if agent != "feedback":
            check.count("partitions_of_a_backtest")
            check.same(f"{where}: the backtest beside the snapshot", backtest.get((agent, partition)), digest)
    return check
