"""Faults that a worker must answer: slow clients, state that is removed under it, and another worker of its name."""

import shutil
from pathlib import Path

from tests.chaos.endpoint import CONNECTIONS, NotThere, address, besiege, holds_state
from tests.chaos.fleet import Fleet, Running
from tests.helpers.waiting import TIMEOUT_S, seconds_until

REMOVED = "was removed while the worker ran; nothing is lost"
TAKEN = "runs already, in process"
RIVAL = "another worker runs with --instance"


def slow_clients(fleet: Fleet, worker: Running) -> str | None:
    """Hold many connections to the worker's endpoint; probes must be answered all the same."""
    where = address(worker.output)
    if where is None or worker.is_paused:
        return None
    try:
        unanswered = besiege(where)
    except NotThere:
        return None
    if unanswered and worker.process.poll() is None:
        fleet.wrong.append(f"{worker.name} did not answer while clients were slow: {'; '.join(unanswered[:3])}")
    return f"{CONNECTIONS} slow clients"


def state_deleted(fleet: Fleet, worker: Running) -> str | None:
    """Remove the worker's state; it must end with a sentence, and its harness starts it again."""
    where = address(worker.output)
    if worker.is_paused or where is None or not holds_state(where):
        return None
    fleet.must_say(worker.name, REMOVED)
    shutil.rmtree(fleet.settings.data_dir / "state" / fleet.settings.topic(worker.name), ignore_errors=True)
    took_s = seconds_until(lambda: worker.process.poll() is not None)
    if took_s is None:
        fleet.sentences.pop(worker.name)
        if not holds_state(where):
            return "state deleted, of partitions that it lost in the same moment"
        fleet.wrong.append(f"{worker.name} went on for {TIMEOUT_S:.0f} s after its state had been removed")
        return "state deleted"
    return f"state deleted, ended after {took_s:.1f} s"


def name_twice(fleet: Fleet, worker: Running) -> str | None:
    """Start another worker of the same name and data directory: it must be refused, and the first one go on."""
    if worker.is_paused or address(worker.output) is None:
        return None
    rival = fleet.rival(worker.name, worker.agents, fleet.settings.data_dir)
    try:
        took_s = seconds_until(lambda: rival.process.poll() is not None)
    finally:
        fleet.end_rival(rival)
    reported = rival.output
    if took_s is None or rival.process.returncode != 1 or TAKEN not in reported or "Traceback" in reported:
        fleet.wrong.append(f"a second {worker.name} was not refused as it must be:\n{reported[-1_000:]}")
    return "a second worker of its name was refused"


def name_twice_elsewhere(fleet: Fleet, worker: Running, directory: Path) -> str | None:
    """Start another worker of the same name as on another machine: one of the two must end with a sentence."""
    others = [item for item in fleet.workers.values() if item is not worker]
    shares = any(agent in item.agents for item in others for agent in worker.agents.split(","))
    if worker.is_paused or shares or worker.agents == "learn":
        return None  # with few partitions the two may have none of one agent
    fleet.must_say(worker.name, RIVAL)
    rival = fleet.rival(worker.name, worker.agents, directory)
    try:
        took_s = seconds_until(lambda: worker.process.poll() is not None or rival.process.poll() is not None)
        which = "neither" if took_s is None else "the first" if worker.process.poll() is not None else "the second"
    finally:
        fleet.end_rival(rival)
    if which != "the first":
        fleet.sentences.pop(worker.name)
    reported = rival.output
    if which == "the second" and (RIVAL not in reported or "Traceback" in reported):
        fleet.wrong.append(f"a second {worker.name} did not end as it must:\n{reported[-1_000:]}")
    if which == "neither":
        fleet.wrong.append(f"two workers of the name {worker.name} went on for {TIMEOUT_S:.0f} s")
    return f"a second worker of its name elsewhere; {which} ended"
