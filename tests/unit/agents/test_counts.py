"""The log lines of an agent's batches: dead letters by code and a status line, each once a while."""

import logging
from collections import Counter
from typing import Any

import pytest

from agents import counts as module
from agents.counts import Counts
from pipeline.engine.records.results import Result
from pipeline.engine.records.whole_amounts import LEAST_AMOUNTS
from pipeline.kafka.records.batch import Batch
from pipeline.observability.metrics import WorkerMetrics
from schemas.records import Record


class Session:
    """Holds two partitions, on which records wait."""

    assigned = (("transactions", 0), ("transactions", 1))
    damaged = ()

    def lag(self) -> dict[tuple[str, int], int]:
        return {("transactions", 0): 5, ("transactions", 1): 2}


def refused(code: str, n: int) -> Result:
    return Result(counts=Counter({("dead_letter", code): n, ("decision", "allow"): 3, ("alert", "score"): 1}))


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_log_lines_tell_dead_letters_by_code_and_what_was_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agents.counts")
    monkeypatch.setattr(module, "LAG_INTERVAL_S", 0.0)
    counts, session = Counts("card", WorkerMetrics("127.0.0.1", 0)), Session()
    batch = Batch([Record("transactions", 0, n, 0, b"k", b"v") for n in range(4)], None, {}, {})
    any_session: Any = session
    for code, n in (("not_json", 2), ("amount_zero", 1), ("not_json", 5)):
        counts.batch(batch, refused(code, n))
        assert counts.lag(any_session)
    reported = lines(caplog, logging.WARNING)
    assert [line.partition(" (see")[0] for line in reported] == [
        "card: 2 dead letters: not_json",
        "card: 1 dead letter: amount_zero",
    ]
    assert lines(caplog, logging.INFO) == []
    monkeypatch.setattr(module, "STATUS_INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "DEAD_LETTERS_INTERVAL_S", 0.0)
    assert counts.lag(any_session)
    # Those that were not told in the meantime are in the next line.
    assert lines(caplog, logging.WARNING)[2].startswith("card: 5 dead letters: not_json")
    (status,) = lines(caplog, logging.INFO)
    assert status.startswith("card: 12 records in ")
    assert status.endswith(", 9 decisions, 3 alerts; 7 wait on 2 partitions")


@pytest.mark.parametrize("others", [0, 1])
def test_cents_that_are_sent_for_euros_are_a_warning_once_a_run(others: int, caplog: pytest.LogCaptureFixture) -> None:
    counts, batch = Counts("card", WorkerMetrics("127.0.0.1", 0)), Batch([], None, {}, {})
    for _ in range(3):
        counts.batch(batch, Result(amounts=Counter({("EUR", False): LEAST_AMOUNTS - 1, ("USD", True): 1})))
        if others:
            counts.batch(batch, Result(amounts=Counter({("EUR", True): others})))
    if others:
        assert lines(caplog, logging.WARNING) == []
        # Decimals of long ago hide nothing.
        for _ in range(3):
            counts.batch(batch, Result(amounts=Counter({("EUR", False): LEAST_AMOUNTS - 1})))
    reported = lines(caplog, logging.WARNING)
    assert [line.startswith("card: none of 1,998 amounts in EUR has decimals") for line in reported] == [True]
