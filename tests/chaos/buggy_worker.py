"""A worker with one bug, seeded on purpose: the checker must find each of them.

``python -m tests.chaos.buggy_worker BUG COMMAND...``, with BUG one of `BUGS`; COMMAND is that of ``fraud-pipeline``.
Every bug strikes once, and leaves the file that ``CHAOS_BUG_FILE`` names.
"""

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from pipeline.cli import main
from pipeline.demo.guarded import watch_parent
from pipeline.features.kernel import CardWindows
from pipeline.kafka.session import Aborted, Session

STRIKES_AT = 3
"""The batch with outputs at which a bug strikes."""
ENOUGH_OUTPUTS = 5

Commit = Callable[..., Any]


class Bug:
    """When a bug strikes: once in all, at one batch of one agent."""

    def __init__(self, agent: str) -> None:
        self._agent, self._batches = agent, 0
        self._struck = Path(os.environ["CHAOS_BUG_FILE"])

    def strikes(self, session: Any, outputs: Any) -> bool:
        """Whether this batch is the one."""
        if session.agent != self._agent or len(outputs) < ENOUGH_OUTPUTS or self._struck.exists():
            return False
        self._batches += 1
        if self._batches < STRIKES_AT:
            return False
        self._struck.touch()
        return True


def commit_before_produce() -> None:
    """The score agent commits a batch's offsets first, and is killed before it writes the outputs."""
    bug, commit = Bug("score"), _commit()

    def committed(session: Any, batch: Any, outputs: Any, *more: Any) -> Any:
        if bug.strikes(session, outputs):
            commit(session, batch, [], *more)
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(session, batch, outputs, *more)

    Session.commit = committed  # type: ignore[method-assign]


def batch_twice() -> None:
    """The score agent processes a batch again after it was committed."""
    bug, commit = Bug("score"), _commit()

    def committed(session: Any, batch: Any, outputs: Any, *more: Any) -> Any:
        strikes = bug.strikes(session, outputs)
        result = commit(session, batch, outputs, *more)
        if strikes:
            commit(session, dataclasses.replace(batch, records=[]), outputs, *more)
        return result

    Session.commit = committed  # type: ignore[method-assign]


def forgotten_undo() -> None:
    """A transaction of the card agent aborts, and its windows keep what the batch put into them."""
    bug, commit = Bug("card"), _commit()
    if hasattr(CardWindows, "undo"):
        CardWindows.undo = CardWindows.settle

    def committed(session: Any, batch: Any, outputs: Any, *more: Any) -> Any:
        if not bug.strikes(session, outputs):
            return commit(session, batch, outputs, *more)
        producer, session._producer = session._producer, _FailsOnce(session._producer)
        # Where an abort folds the state again instead of undoing it, the windows of before are put back.
        windows = {number: part._windows for number, part in session._handler._held.items()}
        try:
            return commit(session, batch, outputs, *more)
        except Aborted:
            for number, kept in windows.items():
                session._handler._held[number]._windows = kept
            raise
        finally:
            session._producer = producer

    Session.commit = committed  # type: ignore[method-assign]


def _commit() -> Commit:
    return Session.commit


class _FailsOnce:
    """A producer whose transaction the broker refuses, in a way that asks for an abort."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def commit_transaction(self, *_: Any) -> None:
        raise KafkaException(KafkaError(KafkaError.INVALID_TXN_STATE, "refused on purpose", False, False, True))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


BUGS: dict[str, Callable[[], None]] = {
    "commit-before-produce": commit_before_produce,
    "batch-twice": batch_twice,
    "forgotten-undo": forgotten_undo,
}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    threading.Thread(target=watch_parent, args=(os.dup(0),), name="parent-watch", daemon=True).start()
    sys.exit(main())
