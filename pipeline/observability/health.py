"""The state of the agents and the brokers, for ``/livez`` and ``/readyz``.

*Live* means that a restart would not help: every agent's thread comes round. *Ready* means that transactions are being
decided: every agent runs and a broker answers. A broker that is away makes a worker unready, never dead: a restart
would lose the state that it holds, and would not bring the broker back.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

import msgspec

AgentState = Literal["starting", "restoring", "waiting for a model", "running", "stopping"]
AGENT_STATES: Final[tuple[AgentState, ...]] = get_args(AgentState)
BROKER_TIMEOUT_S: Final = 10.0
"""Longest silence of the brokers that leaves a worker ready: a broker that restarts is away for a few seconds."""
LIVENESS_TIMEOUT_S: Final = 300.0


class Check(NamedTuple):
    """The result of one check, with a sentence."""

    name: str
    ok: bool
    detail: str


class HealthReport(NamedTuple):
    """All checks of one question."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True if every check passed."""
        return all(check.ok for check in self.checks)

    def json(self) -> bytes:
        """The report as a JSON object, a line for each check."""
        lines = ",\n".join(
            "    " + msgspec.json.encode({"name": check.name, "ok": check.ok, "detail": check.detail}).decode()
            for check in self.checks
        )
        status = "ok" if self.ok else "failing"
        return f'{{\n  "status": "{status}",\n  "checks": [\n{lines}\n  ]\n}}\n'.encode()


@dataclass(slots=True)
class _Agent:
    state: AgentState
    beat_s: float


@dataclass(slots=True)
class _Broker:
    answered_s: float
    """When a broker last answered; at first, when this worker began to ask."""
    asked_s: float
    back_s: float
    """When a broker last answered after a silence: agents may have stood still until then."""
    watched: bool = False
    """True once any broker was asked."""
    known: bool = False
    """True once any broker answered."""
    silent: bool = True
    """True if the last broker asked did not answer."""
    reason: str = "none was asked yet"


@dataclass
class Health:
    """The known state of the worker's agents and brokers. Every method may be called from any thread.

    ``agents`` are those that run in this worker. ``clock`` gives seconds that only grow.
    """

    agents: Iterable[str] = ()
    liveness_timeout_s: float = LIVENESS_TIMEOUT_S
    broker_timeout_s: float = BROKER_TIMEOUT_S
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _agents: dict[str, _Agent] = field(init=False, repr=False)
    _broker: _Broker = field(init=False, repr=False)
    _step: str = field(default="", init=False, repr=False)
    """The thing that a starting agent waits for."""

    def __post_init__(self) -> None:
        now_s = self.clock()
        self._agents = {name: _Agent("starting", now_s) for name in self.agents}
        self._broker = _Broker(now_s, now_s, now_s)

    def working(self, agent: str) -> None:
        """``agent``'s thread has come round; long work (a restore) must say so too, from time to time."""
        with self._lock:
            self._agents[agent].beat_s = self.clock()

    def state(self, agent: str, state: AgentState) -> None:
        """``agent`` is in ``state`` from now on. Its thread has come round with it."""
        with self._lock:
            known = self._agents[agent]
            known.state, known.beat_s = state, self.clock()

    def starting(self, step: str) -> None:
        """The start of the worker has come round, and with it every agent that has not begun.

        Args:
            step: What it does or waits for.
        """
        with self._lock:
            now_s, self._step = self.clock(), step
            for agent in self._agents.values():
                if agent.state == "starting":
                    agent.beat_s = now_s

    def broker_answered(self) -> None:
        """A broker has just answered."""
        with self._lock:
            now_s, broker = self.clock(), self._broker
            if broker.silent:
                broker.back_s = now_s
            broker.answered_s = broker.asked_s = now_s
            broker.silent, broker.watched, broker.known = False, True, True

    def broker_silent(self, reason: str) -> None:
        """A broker was asked and did not answer."""
        with self._lock:
            broker = self._broker
            broker.asked_s, broker.reason = self.clock(), reason
            broker.silent = broker.watched = True

    def unreachable_s(self) -> float:
        """Seconds since a broker last answered; 0 while the last one asked did."""
        with self._lock:
            silence_s = self.clock() - self._broker.answered_s
            # A watch that no longer asks is no proof of an answer.
            return silence_s if self._broker.silent or silence_s > self.broker_timeout_s else 0.0

    def states(self) -> dict[str, AgentState]:
        """The state of each agent."""
        with self._lock:
            return {name: agent.state for name, agent in self._agents.items()}

    def live(self) -> HealthReport:
        """Check that every agent's thread comes round."""
        with self._lock:
            now_s, broker = self.clock(), self._broker
            silence_s = now_s - broker.asked_s
            checks = [self._life(name, agent, now_s) for name, agent in self._agents.items()]
            if broker.watched:
                checks.append(
                    Check("broker watch", silence_s <= self.liveness_timeout_s, f"asked {silence_s:.0f} s ago")
                )
        return HealthReport(tuple(checks))

    def ready(self) -> HealthReport:
        """Check that transactions are being decided."""
        with self._lock:
            now_s, broker = self.clock(), self._broker
            silence_s = now_s - broker.answered_s
            reached = broker.known and silence_s <= self.broker_timeout_s
            detail = f"no answer for {silence_s:.0f} s: {broker.reason}" if broker.silent else "answers"
            if not broker.silent and not reached:
                detail = f"was not asked for {silence_s:.0f} s"
            checks = [Check("broker", reached, detail)]
            checks += [
                Check(f"agent {name}", agent.state == "running", self._state(agent))
                for name, agent in self._agents.items()
            ]
        return HealthReport(tuple(checks))

    def _state(self, agent: _Agent) -> str:
        return f"starting: {self._step}" if agent.state == "starting" and self._step else agent.state

    def _life(self, name: str, agent: _Agent, now_s: float) -> Check:
        silence_s = now_s - agent.beat_s
        detail = f"{self._state(agent)}, came round {silence_s:.0f} s ago"
        if self._broker.watched and self._broker.silent:
            return Check(f"agent {name}", True, f"{detail}; not checked while no broker answers")
        # A thread that waited for the broker could not come round before the broker did.
        waited_s = min(silence_s, now_s - self._broker.back_s)
        ok = waited_s <= self.liveness_timeout_s
        return Check(f"agent {name}", ok, detail if ok else f"{detail}, longer than {self.liveness_timeout_s:.0f} s")
