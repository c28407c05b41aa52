"""Reads damaged blocks, in a process of its own: compiled code that reads beyond an array may end the process.

``python -m tests.helpers.block_fuzz COUNT`` prints how many were refused, decided and of another kernel.
"""

import sys
from collections import Counter

import numpy as np

from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.encoding.blocks import KernelMismatch
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.score import ScorePartition
from schemas.records import Record
from schemas.topics import DECISIONS, PROFILED
from tests.helpers.blocks import sealed
from tests.helpers.champion import active
from tests.helpers.logs import after, decode_decision, to
from tests.unit.engine.test_engine_card import NOW, busy_logs, options

NUMBERS = (0, 1, 2, 127, 128, 255)


def good_blocks() -> list[bytes]:
    """Blocks as a card agent writes them, of few rows and of more, with labels and without."""
    transactions, labels = busy_logs(3, 60)
    card = CardPartition(options(), None, MemoryStore())
    batches = [transactions.records[:1], [*transactions.records[1:], *labels.records]]
    return [output.value or b"" for batch in batches for output in to(PROFILED, card.process(batch, NOW))]


def damaged(value: bytes, random: np.random.Generator) -> bytes:
    """The block with some bytes changed, left out or added, mostly under right checksums."""
    changed = bytearray(value)
    for _ in range(int(random.integers(1, 4))):
        # The head and the columns are a small part of the bytes.
        end = len(changed) if random.random() < 0.5 else min(len(changed), 200)
        at = int(random.integers(0, end)) if end else 0
        kind = random.random()
        if kind < 0.7 and changed:
            changed[at] = int(random.choice(NUMBERS)) if random.random() < 0.5 else int(random.integers(0, 256))
        elif kind < 0.8:
            del changed[at : at + int(random.integers(1, 9))]
        elif kind < 0.9:
            changed[at:at] = bytes(int(random.integers(1, 9)))
        else:
            changed[at : at + 8] = int(random.integers(-(2**63), 2**63 - 1)).to_bytes(8, "little", signed=True)
    return sealed(bytes(changed)) if random.random() < 0.95 else bytes(changed)


def main(count: int) -> None:
    """Read ``count`` damaged blocks."""
    random, good, found = np.random.default_rng(0), good_blocks(), Counter[str]()
    decider, models = Decider("EUR", 1), active(threshold=0.2, audit_rate=0.1)
    for number in range(count):
        value = damaged(good[number % len(good)], random)
        state = ScorePartition()
        try:
            result = decider.process([(state, [Record(PROFILED.name, 0, 0, 0, None, value)])], models, after(500))
        except KernelMismatch:
            found["other kernel"] += 1
        else:
            decisions = [decode_decision(output.value or b"") for output in to(DECISIONS, result)]
            found["decided" if decisions else "refused"] += 1
        state.close()
    sys.stdout.write(f"{found['refused']} {found['decided']} {found['other kernel']}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
