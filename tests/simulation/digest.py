"""Digests of what a handler holds; the only place of the simulation that looks into one."""

import hashlib

from agents.label import LabelPartitions
from agents.learn import LearnPartitions
from agents.partitions import KernelPartitions
from agents.score import ScorePartitions
from pipeline.kafka.session.state_handler import StateHandler


def state_digest(handler: StateHandler, partition: int) -> str | None:
    """Return the digest of the committed state of a partition that ``handler`` holds.

    Returns:
        Hexadecimal digits; None where there is no state, and for an online model that nobody has published yet: where
        it began is known to its holder alone.
    """
    assert isinstance(handler, KernelPartitions | LearnPartitions | LabelPartitions)
    return handler.digest(partition) or None


def models_digest(handler: StateHandler) -> str:
    """Return a digest of the models with which the score agent decides."""
    assert isinstance(handler, ScorePartitions)
    active = handler._models.model_set.active
    if active is None:
        return ""
    contents_ = (active.lightgbm.to_payload(), active.river.to_payload(), active.policy.payload)
    return hashlib.sha256(b"\n".join(contents_)).hexdigest()
