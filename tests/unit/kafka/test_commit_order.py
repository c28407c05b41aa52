"""What comes first where no transaction holds outputs and offsets together."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.kafka.cluster.errors import Aborted
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
    session._retries = SimpleNamespace(call=lambda _, commit: commit())
    session._client = SimpleNamespace(consumer=SimpleNamespace(commit=lambda **_: done.append("offsets")))
    try:
        session._write([], {("transactions", 0): (1, None)}, None)
    except Aborted:
        assert not acknowledged
    assert done == ["outputs", "offsets"][: 1 + acknowledged]
