"""A worker with one bug, seeded on purpose: the checker must find each of them.

``python -m tests.chaos.buggy_worker BUG COMMAND...``, with BUG one of `BUGS`; COMMAND is that of ``fraud-pipeline``.
Every bug strikes once, and leaves the file that ``CHAOS_BUG_FILE`` names.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cli import main
from pipeline.demo.child_process import watch_parent
from pipeline.engine.scores import decider
from pipeline.features.kernel import CardWindows
from pipeline.kafka.cluster.errors import Aborted
from pipeline.kafka.records.batch import make_batch
from pipeline.kafka.session.session import Session

STRIKES_AT = 2
"""The batch of some size at which a bug strikes."""
ENOUGH = 4

Commit = Callable[..., Any]


class Bug:
    """When a bug strikes: once in all, at one batch of one agent."""

    def __init__(self, agent: str) -> None:
        self._agent, self._batches = agent, 0
        self._struck = Path(os.environ["CHAOS_BUG_FILE"])

    def strikes(self, session: Any, size: int) -> bool:
        """Whether this batch, with ``size`` records or outputs, is the one."""
        return session.agent == self._agent and self.strikes_work(size)

    def strikes_work(self, size: int) -> bool:
        """As `strikes`, of work that only this agent does."""
        if size < ENOUGH or self._struck.exists():
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
        if bug.strikes(session, len(outputs)):
            commit(session, batch, [], *more)
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(session, batch, outputs, *more)

    Session.commit = committed  # type: ignore[assignment,method-assign]


def batch_twice() -> None:
    """The score agent processes a batch again after it was committed."""
    bug, commit = Bug("score"), _commit()

    def committed(session: Any, batch: Any, outputs: Any, *more: Any) -> Any:
        strikes = bug.strikes(session, len(outputs))
        result = commit(session, batch, outputs, *more)
        if strikes:
            commit(session, make_batch([], batch.group_metadata), outputs, *more)
        return result

    Session.commit = committed  # type: ignore[assignment,method-assign]


def forgotten_rollback() -> None:
    """A transaction of the card agent aborts, and its windows keep what the batch put into them."""
    bug, commit = Bug("card"), _commit()
    CardWindows.rollback = CardWindows.commit  # type: ignore[method-assign]

    def committed(session: Any, batch: Any, outputs: Any, *more: Any) -> Any:
        # Not its outputs, which are a block or two whatever they hold.
        if not bug.strikes(session, len(batch.records)):
            return commit(session, batch, outputs, *more)
        transactions, session._transactions = session._transactions, _Refused()
        try:
            return commit(session, batch, outputs, *more)
        finally:
            session._transactions = transactions

    Session.commit = committed  # type: ignore[assignment,method-assign]


def features_of_another() -> None:
    """The score agent writes to ``features`` what the models saw of the transaction before, in one batch."""
    bug, encode = Bug("score"), decider.encode_features

    def encoded(batch: Any, *others: Any) -> Any:
        if bug.strikes_work(batch.subjects.rows):
            batch = batch._replace(features=np.roll(batch.features, 1, axis=0))
        return encode(batch, *others)

    decider.encode_features = encoded


def _commit() -> Commit:
    return Session.commit


class _Refused:
    """Transactions that the broker refuses."""

    exactly_once = True

    def commit(self, *_: Any) -> None:
        raise Aborted("refused on purpose")


BUGS: dict[str, Callable[[], None]] = {
    "commit-before-produce": commit_before_produce,
    "batch-twice": batch_twice,
    "forgotten-rollback": forgotten_rollback,
    "features-of-another": features_of_another,
}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    threading.Thread(target=watch_parent, args=(os.dup(0),), name="parent-watch", daemon=True).start()
    sys.exit(main())
