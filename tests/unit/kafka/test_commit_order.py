"""What a session takes for committed: what comes first at least once, and whose marks say how a transaction ended."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.kafka.cluster.errors import Aborted, Unknown
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.session.attempts import Committed, Mark
from pipeline.kafka.session.session import Session


@pytest.mark.parametrize("acknowledged", [True, False])
def test_at_least_once_offsets_are_committed_behind_acknowledged_outputs(*, acknowledged: bool) -> None:
    done: list[str] = []

    def write(_: object) -> None:
        done.append("outputs")
        if not acknowledged:
            raise Aborted("they were not acknowledged")

    session: Any = Session.__new__(Session)
    session._transactions = SimpleNamespace(exactly_once=False, write=write)
    session._handler = SimpleNamespace(state_beside=lambda _: None)
    session._retries = SimpleNamespace(call=lambda _, commit: commit())
    session._client = SimpleNamespace(consumer=SimpleNamespace(commit=lambda **_: done.append("offsets")))
    try:
        session._write([], {("transactions", 0): (1, Mark("own/1"))}, None)
    except Aborted:
        assert not acknowledged
    assert done == ["outputs", "offsets"][: 1 + acknowledged]


@pytest.mark.parametrize("committed", [True, False])
def test_the_mark_of_any_one_partition_says_whose_the_committed_offsets_are(*, committed: bool) -> None:
    """Others may have moved on in one partition of ours, and may have committed the same offsets as we would."""
    first, second = ("transactions", 0), ("transactions", 1)
    found = {first: Committed(9, Mark("another/1")), second: Committed(2, Mark("own/1" if committed else "another/1"))}
    done: list[str] = []

    def fail(*_: object) -> None:
        raise Unknown("the broker died")

    session: Any = Session.__new__(Session)
    session.agent, session._member = "score", SimpleNamespace(reads=())
    session._write, session._offsets = fail, SimpleNamespace(read=lambda *_: found)
    session._client = SimpleNamespace(consumer=None)
    session._assignment = SimpleNamespace(offsets={})
    session._careful = SimpleNamespace(
        new_name=lambda: "own/1", plan=SimpleNamespace(attempt_at=lambda *_: None), end_step=lambda: None
    )
    session._handler = SimpleNamespace(
        config=None, commit=lambda _: done.append("committed"), rollback=lambda _: done.append("taken back")
    )
    session.rewind = lambda _: done.append("read again")
    try:
        session.commit(Batch([], None, ends={first: 1, second: 2}), [])
    except Aborted:
        assert not committed
    assert done == (["committed"] if committed else ["read again"])
