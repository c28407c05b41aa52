"""Which faults happen when: drawn up front from the seed, so that a run can be repeated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

KINDS = ("label", "card", "score", "feedback", "learn")
"""Agents that run as workers of their own in the second part of a run."""

LONG_SHARES = {
    "broker kill": 0.1,
    "broker pause": 0.08,
    "pause": 0.1,
    "terminate": 0.1,
    "terminate twice": 0.04,
    "snapshots full": 0.05,
    "snapshot corrupt": 0.06,
    "snapshot cut short": 0.06,
    "snapshots gone": 0.04,
    "garbage": 0.08,
    "garbage, kill": 0.08,
    "bomb": 0.08,
    "open transaction": 0.15,
    "slow clients": 0.1,
    "state deleted": 0.06,
    "name twice": 0.04,
    "name twice elsewhere": 0.04,
}
"""Faults of each kind for each SIGKILL of a worker; at least one of each."""

CLUSTER_SHARES = {
    "broker kill": 0.3,
    "broker pause": 0.3,
    "two brokers": 0.15,
    "brokers in turn": 0.1,
    "controller change": 0.2,
    "bad disk": 0.15,
    "open transaction": 0.3,  # some are ended by what becomes of their coordinator
}
"""Faults of several brokers for each SIGKILL of a worker, over those of `LONG_SHARES`."""
CLUSTER_PAUSE_S = (2.0, 14.0)
"""Shorter, or longer, than a broker's session: then others lead what it led."""
ALONE = "name twice elsewhere"
"""Needs a worker whose agents no other has."""
BROKER_KINDS = ("broker kill", "broker pause", "two brokers", "brokers in turn", "controller change")
"""Faults of brokers alone."""

BY_AGENT = ("kill", "pause", "terminate", "terminate twice", "garbage, kill")
"""Kinds that hit the agents in turn, where each is a worker of its own."""
LAST = "damaged batch"
"""A broker that is killed cuts its log off at such a batch when it starts: none comes before a broker's death."""
DAMAGED = 2

SHORT_KINDS = ("garbage, kill", "pause", "broker kill", "terminate", "bomb")
SHORT_CLUSTER_KINDS = ("kill", "broker kill", "broker pause", "controller change")

AFTER_CHANGE_S = (0.5, 6.0)
"""While workers notice another declaration, end, and restore their windows."""


class Fault(NamedTuple):
    """One fault; ``at_s`` counts from the first decision."""

    at_s: float
    kind: str
    target: str
    """A kind of agent, or ``any``: whose worker is meant."""
    draw: float
    """Between 0 and 1: chooses among the workers that there are, and among files."""
    length_s: float
    """How long a pause lasts, or how long a killed worker stays away."""


@dataclass
class Happened:
    """A fault as it was done."""

    at_s: float
    kind: str
    what: str
    agents: str = "any"
    snapshots: tuple[str, ...] = ()
    """Snapshots that were damaged."""
    wall_s: float = 0.0
    monotonic_s: float = 0.0
    recovered_s: float | None = None
    """From the fault to the next decision (example, model) of work begun after it, in all partitions."""
    met: bool | None = None
    """Of faults that must show somewhere: whether that was seen."""


def schedule(seed: int, seconds: float, kills: int, *, by_kind_from: float = 0.5) -> list[Fault]:
    """Faults of a long run of ``seconds``: ``kills`` SIGKILLs of workers, others in proportion, and 1 -> 3 -> 2 -> 1.

    From the share ``by_kind_from`` of the time on every kind of agent is a worker of its own, and is killed in turn.
    """
    random = np.random.default_rng((seed, 4))
    kinds = random.permutation(_kinds(LONG_SHARES, kills)).tolist()
    broker_kill = max(i for i, kind in enumerate(kinds) if kind == "broker kill")
    for _ in range(DAMAGED):
        kinds.insert(int(random.integers(broker_kill + 1, len(kinds) + 1)), LAST)
    return _spread(random, kinds, seconds, by_kind_from)


def cluster_schedule(seed: int, seconds: float, kills: int) -> list[Fault]:
    """Faults of a long run on several brokers, with two workers that hold all agents.

    None damages all replicas of a batch: that a disk of one broker does not harm is what this run is for.
    """
    random = np.random.default_rng((seed, 4))
    shares = {kind: share for kind, share in LONG_SHARES.items() if kind != ALONE} | CLUSTER_SHARES
    kinds = random.permutation(_kinds(shares, kills)).tolist()
    return _spread(random, kinds, seconds, by_kind_from=2.0, broker_pause_s=CLUSTER_PAUSE_S)


def short_schedule(seed: int, seconds: float, *, cluster: bool = False) -> list[Fault]:
    """A few faults of several kinds, the broker's death among them, and a second worker."""
    random = np.random.default_rng((seed, 4))
    kinds = SHORT_CLUSTER_KINDS if cluster else SHORT_KINDS
    return _spread(random, random.permutation(kinds).tolist(), seconds, by_kind_from=2.0)


def declared_schedule(seed: int, seconds: float, kills: int, changes: Sequence[float]) -> list[Fault]:
    """Kills of workers, one of them behind garbage and one without snapshots, and one behind each change.

    Args:
        seed: Of the faults.
        seconds: Length of the load.
        kills: SIGKILLs of workers at any time.
        changes: Shares of the time at which the declaration changes: a worker is killed within seconds of each.
    """
    random = np.random.default_rng((seed, 4))
    kinds = random.permutation(["kill"] * kills + ["snapshots gone", "garbage, kill"]).tolist()
    chasing = []
    for change_s in (share * seconds for share in changes):
        after_s = float(random.uniform(*AFTER_CHANGE_S))
        chasing.append(Fault(change_s + after_s, "kill", "any", float(random.random()), 0.0))
    return sorted(_spread(random, kinds, seconds, by_kind_from=2.0) + chasing, key=lambda fault: fault.at_s)


def _kinds(shares: Mapping[str, float], kills: int) -> list[str]:
    kinds = ["kill"] * kills
    for kind, share in shares.items():
        kinds += [kind] * max(1, round(share * kills))
    return kinds


def _spread(
    random: np.random.Generator,
    kinds: Sequence[str],
    seconds: float,
    by_kind_from: float,
    broker_pause_s: tuple[float, float] = (2.0, 5.0),
) -> list[Fault]:
    scaling = [(0.02, "three workers"), (0.3, "two workers"), (0.42, "one worker")] if by_kind_from < 1 else []
    scaling += [(by_kind_from, "a worker for each agent")] if by_kind_from < 1 else [(0.0, "two workers")]
    gap_s = seconds / (len(kinds) + 1)
    faults = [Fault(share * seconds, kind, "any", 0.0, 0.0) for share, kind in scaling]
    turn = 0
    for number, kind in enumerate(kinds, 1):
        at_s = gap_s * (number + float(random.uniform(-0.35, 0.35)))
        target = "any"
        if at_s >= by_kind_from * seconds and kind in BY_AGENT:
            target = KINDS[turn % len(KINDS)]
            turn += 1
        length_s = {
            "kill": random.uniform(0, 1),
            "pause": random.uniform(9, 13),
            "broker pause": random.uniform(*broker_pause_s),
        }
        faults.append(
            Fault(at_s, kind, target, float(random.random()), float(length_s.get(kind, random.uniform(0.5, 3))))
        )
    return sorted(faults, key=lambda fault: fault.at_s)
