"""Blocks of another kernel on ``profiled``: forged ones end no worker, and the card agent's own wait (25)."""

from datetime import timedelta
from itertools import count

import msgspec

from pipeline.engine.records.partitioner import partition_of
from schemas.messages import ProfiledTransaction
from tests.helpers.logs import START, block_of, transaction
from tests.simulation.names import PARTITIONS, PREFIX
from tests.simulation.reading import Logs, decode_decision, profiled_rows
from tests.simulation.world import World

MERCHANTS = [next(f"m{n}" for n in count() if partition_of(f"m{n}", PARTITIONS) == home) for home in range(PARTITIONS)]
"""One of each partition of ``profiled``."""


def buy(within: World, numbers: range) -> None:
    for number in numbers:
        within.tick(60)
        value = transaction(number, START, card_id="c1", merchant_id=MERCHANTS[number % PARTITIONS])
        within.cluster.write(PREFIX + "transactions", None, b"c1", value)


def test_blocks_of_another_kernel_end_no_worker_and_the_card_agent_s_are_kept(world: World) -> None:
    buy(world, range(6))
    world.drain()
    cluster = world.cluster
    *_, last = (row for _, _, row in profiled_rows(Logs(cluster).records["profiled"]))
    assert isinstance(last, ProfiledTransaction)
    source, home = last.source, partition_of(last.merchant_id, PARTITIONS)

    def of_another_kernel(merchant: str, **changes: int) -> bytes:
        """A block of a transaction that was read elsewhere, or later."""
        return block_of(
            msgspec.structs.replace(
                last,
                transaction_id="t",
                merchant_id=merchant,
                kernel="0-other",
                source=msgspec.structs.replace(source, **changes),
                ingested_at=last.ingested_at + timedelta(days=1),
            )
        )

    # Not read yet, of no partition, of a merchant of another partition, decided before: the card agent wrote none.
    own, other = last.merchant_id, MERCHANTS[1 - home]
    forged = [of_another_kernel(own, offset=source.offset + 1_000_000 + number) for number in range(3)]
    forged += [of_another_kernel(own, partition=99), of_another_kernel(other, offset=0), of_another_kernel(own)]
    for value in forged:
        cluster.write(PREFIX + "profiled", home, None, value)
    # Where its merchant belongs, but with the source of a transaction of another merchant.
    forged.append(of_another_kernel(other))
    cluster.write(PREFIX + "profiled", 1 - home, None, forged[-1])
    world.drain()
    assert {*forged} <= {record.value for record in Logs(cluster).records["dead-letters"]}

    # As the card agent of another release would write it: it has read this record, and no block holds it.
    refused = cluster.write(PREFIX + "transactions", source.partition, b"c1", b'{"merchant_id":"%s"}' % own.encode())
    world.drain()
    undecided = cluster.write(PREFIX + "profiled", home, None, of_another_kernel(own, offset=refused.offset))
    buy(world, range(6, 12))
    for agent in 20 * ("card", "score"):
        world.step(0, agent)
    logs = Logs(cluster)
    assert undecided.value not in {record.value for record in logs.records["dead-letters"]}
    assert cluster.group(PREFIX + "score").committed[PREFIX + "profiled", home][0] <= undecided.offset
    # The other partition goes on.
    decided = {decision.transaction_id for _, decision in logs.messages_of("decisions", decode_decision)}
    assert {f"t{number}" for number in range(6, 12) if MERCHANTS[number % PARTITIONS] == other} <= decided
