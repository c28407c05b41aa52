"""The records of ``progress`` that a batch is committed with: its input ranges and config, for replays."""

from pipeline.kafka.readers.replay_reader import decode_progress
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.records.internal import readable_value
from pipeline.kafka.records.member import Member
from schemas.messages import ProcessingConfig, Progress
from schemas.records import Output
from schemas.topics import PROGRESS, has_order


def batch_markers(member: Member, batch: Batch, config: ProcessingConfig | None) -> list[Output]:
    """Return the batch's input ranges and config, for replays; an agent of one input topic needs none."""
    if not has_order(member.topics.values()):
        return []
    markers = []
    for number in sorted(batch.partitions):
        starts = {member.topics[topic].name: offset for (topic, n), offset in batch.starts.items() if n == number}
        ends = {member.topics[topic].name: offset for (topic, n), offset in batch.ends.items() if n == number}
        marker = Progress(
            agent=member.agent,
            starts=starts,
            ends=ends,
            config=config,
            quarantined=[position for position in batch.quarantined if position.partition == number],
        )
        markers.append(
            Output(PROGRESS, member.agent.encode(), readable_value(marker, decode_progress), partition=number)
        )
    return markers
