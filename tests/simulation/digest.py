"""A digest of a partition's state: the same live, after a rollback and after a restore.

This is the only place of the simulation that looks into a handler. What differs between states that hold the same
(where a table has put its rows, what lies behind the horizon and is not swept yet) is left out.
"""

import hashlib
from typing import Any

import msgspec

from agents.learn import LearnPartitions
from agents.partitions import KernelPartitions
from agents.score import ScorePartitions
from pipeline.engine.card import CardPartition
from pipeline.engine.feedback import FeedbackPartition
from pipeline.engine.learn import LearnPartition
from pipeline.engine.score import ScorePartition
from pipeline.engine.state import Store
from pipeline.features.catalogue import HORIZON_US
from pipeline.kafka.handler import PartitionHandler
from tests.helpers.timelines import Windows, contents

_EVERYTHING = (b"", b"\xff" * 64)


def state_digest(handler: PartitionHandler, partition: int) -> str | None:
    """Return the digest of the settled state of a partition that ``handler`` holds.

    Returns:
        Hexadecimal digits; None for an online model that nobody has published yet: where it began is known to its
        holder alone.
    """
    values = _values(_held(handler, partition))
    return None if values is None else hashlib.sha256(msgspec.msgpack.encode(values, order="sorted")).hexdigest()[:16]


def _held(handler: PartitionHandler, partition: int) -> Any:
    if isinstance(handler, LearnPartitions):
        return handler._of()
    assert isinstance(handler, KernelPartitions)
    return handler._held[partition]


def _values(state: Any) -> Any:
    match state:
        case CardPartition():
            own = (state._newest_us, state._first_day, state._index.state, state._waiting.state)
            return own, _windows(state._windows), _store(state._store)
        case ScorePartition():
            return state._inputs.dump(), _windows(state._windows)
        case FeedbackPartition():
            own = (state._newest_us, state._first_day, state._served.state, state._waiting.state)
            return own, _store(state._store)
        case LearnPartition():
            model = state._learner.snapshot(state.next_offset).to_payload()
            return None if state.untold else (state.next_offset, state._published_offset, model)
        case _:
            raise TypeError(f"no digest is known of a {type(state).__name__}")


def _store(store: Store) -> list[tuple[bytes, bytes]]:
    return list(store.scan(*_EVERYTHING))


def _windows(windows: Windows) -> list[Any]:
    """Entities by key, with what the horizon has not passed."""
    floor_us = windows.newest_us - HORIZON_US
    found: list[Any] = [windows.newest_us]
    for key, held in sorted(contents(windows).items()):
        events = [row for row in held.events if row[0] > floor_us]
        labels = [row for row in held.labels if row[0] > floor_us]
        if events or labels or held.case[0] > floor_us:
            found.append((key, events, labels, held.case if held.case[0] > floor_us else None))
    return found


def base_of(handler: PartitionHandler) -> str:
    """Return the LightGBM version that a learn agent's model stands on; empty for other agents."""
    return handler._lightgbm if isinstance(handler, LearnPartitions) else ""


def models_digest(handler: PartitionHandler) -> str:
    """Return a digest of the models with which the score agent decides."""
    assert isinstance(handler, ScorePartitions)
    active = handler._models.board.active
    if active is None:
        return ""
    contents_ = (active.lightgbm.to_payload(), active.river.to_payload(), active.policy.payload)
    return hashlib.sha256(b"\n".join(contents_)).hexdigest()
