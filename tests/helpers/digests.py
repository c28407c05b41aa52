"""Digests of all partitions' states: restored as a worker does, and computed by a recorded backtest.

A worker that was stopped has written snapshots of its live state. So three digests must be equal: of the snapshot, of
the log alone, and of the backtest.
"""

from contextlib import closing
from pathlib import Path

from agents.app import WorkerContext
from agents.topology import CARD, FEEDBACK, SCORE
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, Span
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.recorded_replay import RecordedReplay
from pipeline.engine.partition_state.state import PartitionState
from pipeline.kafka.cluster.admin import partition_count
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.quarantine import Quarantines
from pipeline.kafka.session.restore import restore_partitions
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options
from pipeline.settings.rate_table import load_rates
from tests.helpers.offsets import committed_offsets

Digests = dict[tuple[str, int], str]
"""Digests by agent and partition."""


def restored_digests(bootstrap: str, settings: Settings, directory: Path) -> tuple[Digests, int]:
    """Restore every partition up to what its agent has committed, as a worker that starts does.

    Args:
        bootstrap: Addresses of brokers.
        settings: The workers' settings; with an empty ``snapshot_url`` the log alone is replayed.
        directory: For the state.

    Returns:
        The digests, and how many records were replayed for them.
    """
    agents = (CARD, SCORE, FEEDBACK)
    own = settings.model_copy(
        update={
            "kafka_bootstrap_servers": bootstrap,
            "instance": "digests",
            "data_dir": directory,
            "snapshot_url": settings.snapshot_address or "",
            "agents": ",".join(spec.name for spec in agents),
        }
    )
    digests, replayed = {}, 0
    worker = WorkerContext(own)
    try:
        worker.connect()
        for spec in agents:
            quarantines = Quarantines(bootstrap, own, spec.name, spec.reads, worker.metrics.records_refused)
            with closing(worker.partitions(spec, quarantines)) as handler:
                handler.assigning(_waiting)
                member = Member(bootstrap, own, spec.name, spec.reads)
                names = list(member.topics)
                committed = committed_offsets(bootstrap, own.topic(spec.name), names, settings=own)
                partitions = member.partitions(range(partition_count(spec.reads[0], own)))
                ends = {at: committed.get(at, 0) for at in partitions}
                for number, done in restore_partitions(member, ends, handler, _waiting):
                    handler.restored(number, done.records)
                    digests[spec.name, number] = handler.digest(number)
                    replayed += done.records
    finally:
        worker.disconnect()
    return digests, replayed


def recorded_digests(bootstrap: str, settings: Settings) -> Digests:
    """Replay the card and score kernels over the whole topics, as a recorded backtest does."""
    digests: Digests = {}

    def ended(agent: str, number: int, state: PartitionState) -> None:
        digests[agent, number] = state.digest()

    source = TopicSource(bootstrap, settings)
    options = card_options(settings, load_rates(settings), settings.card_partitions)
    span = Span(EARLIEST_US, EARLIEST_US, LATEST_US)
    replay = RecordedReplay(source, span, options, ModelLibrary(settings, bootstrap), lambda _: None, ended)
    with closing(replay.run(None, None)) as batches:
        for _ in batches:
            pass
    return digests


def _waiting() -> None:
    pass
