"""Differences from live decisions: all are told, to the last bit, each with what was not the same."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.backtest import Decisions, Order, replay
from pipeline.backtest import live as compared
from pipeline.backtest.live import Comparer, LiveDecisions, Place
from pipeline.backtest.sources import Span, TopicSource
from pipeline.engine.models import ActiveModels
from pipeline.features.catalogue import US_PER_DAY
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import DECISIONS, Topic
from tests.helpers.histories import START_US, Happening, busy_history, play, transactions
from tests.helpers.live import Live
from tests.unit.test_backtest import models, options

LONG_AGO = Span(-(2**61), -(2**61), 2**61)


@pytest.fixture(scope="module")
def history() -> list[Happening]:
    """Transactions in the order of their events, so that live and backtest agree."""
    bought = [one for one in busy_history(11, 300, invalid=0.0) if one.kind == "transaction"]
    bought.sort(key=lambda one: one.fields["event_time"])
    return [dataclasses.replace(one, sequence=number) for number, one in enumerate(bought)]


def here(history: list[Happening], scored_by: ActiveModels | None = None) -> tuple[Decisions, list[Place]]:
    (decisions,) = replay(scored_by or models(), [transactions(history)], options=options())
    return decisions, [(0, int(row)) for row in decisions.transactions.row]


def live_records(history: list[Happening]) -> list[Record]:
    live = play(history, Live(models(), options()))
    encode = msgspec.json.Encoder(decimal_format="number").encode
    return [Record(DECISIONS.name, 0, offset, offset, b"", encode(one)) for offset, one in enumerate(live.decisions)]


def comparer(records: list[Record], *, span: Span = LONG_AGO, at_once: int = 50) -> Comparer:
    class Source(TopicSource):
        def read(self, topic: Topic, number: int, offsets: range) -> Iterator[list[Record]]:
            for first in range(0, len(records), at_once):
                yield records[first : first + at_once]

    source = Source("nowhere", Settings(kafka_bootstrap_servers=None))
    return Comparer(LiveDecisions(source, span, {0: range(len(records))}), Order.EVENT_TIME)


def causes(found: Comparer) -> dict[str, int]:
    return dict(found.finish().causes)


def test_equal_decisions_have_no_difference_in_whatever_order_they_come(history: list[Happening]) -> None:
    decisions, places = here(history)
    found = comparer(live_records(history))
    backwards = np.arange(len(decisions))[::-1]
    for rows in np.array_split(backwards, 7):
        found.take(decisions.take(rows), [places[row] for row in rows])
    comparison = found.finish()
    assert comparison.differences == []
    assert comparison.compared == len(decisions) > 100


def test_the_last_bit_is_a_difference(history: list[Happening]) -> None:
    decisions, places = here(history)
    features = decisions.features.copy()
    features[3, 0] = np.nextafter(features[3, 0], np.inf)
    score = decisions.score.copy()
    score[5] = np.nextafter(score[5], 1.0)
    found = comparer(live_records(history))
    found.take(dataclasses.replace(decisions, features=features, score=score), places)
    comparison = found.finish()
    assert [(one.transaction_id, one.cause, one.differs) for one in comparison.differences] == [
        (decisions.transactions.transaction_id[3].as_py(), compared.ARRIVAL, "amount"),
        (decisions.transactions.transaction_id[5].as_py(), compared.UNEXPLAINED, "score"),
    ]
    frame = comparison.frame()
    assert frame["score"].tolist() == [decisions.score[3], score[5]]
    assert frame["event_time"].dt.tz is not None


def other_river() -> ActiveModels:
    base = models()
    return dataclasses.replace(base, river=first_river(base.lightgbm.version))


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        (lambda decisions: dataclasses.replace(decisions, rates_version="another"), compared.RULES),
        (lambda decisions: decisions.under(other_river()), compared.RIVER),
        (lambda decisions: dataclasses.replace(decisions, case_sequence=decisions.case_sequence + 1), compared.ARRIVAL),
    ],
)
def test_a_cause_is_the_first_thing_that_was_not_the_same(history: list[Happening], changed: Any, cause: str) -> None:
    decisions, places = here(history)
    # Whatever is different must show, or there is nothing to explain.
    different = dataclasses.replace(changed(decisions), score=decisions.score + 1e-9)
    found = comparer(live_records(history))
    found.take(different, places)
    assert causes(found) == {cause: len(decisions)}


def test_merchant_features_alone_differ_where_partitions_were_read_otherwise(history: list[Happening]) -> None:
    decisions, places = here(history)
    features = decisions.features.copy()
    features[:, -1] += 1.0
    features[:, -1] = np.where(np.isnan(features[:, -1]), 1.0, features[:, -1])
    found = comparer(live_records(history))
    found.take(dataclasses.replace(decisions, features=features), places)
    assert causes(found) == {compared.BETWEEN: len(decisions)}


def test_windows_that_began_later_explain_what_lies_within_their_reach(history: list[Happening]) -> None:
    decisions, places = here(history)
    shifted = dataclasses.replace(decisions, features=decisions.features + 1.0)
    found = comparer(live_records(history))
    middle_us = int(np.median(decisions.transactions.event_time_us))
    began_us = middle_us - 67 * US_PER_DAY
    found.began(began_us)
    found.take(shifted, places)
    before = int((decisions.transactions.event_time_us < middle_us).sum())
    assert causes(found) == {compared.WINDOWS: before, compared.ARRIVAL: len(decisions) - before}


def test_what_only_one_side_decided_is_told(history: list[Happening]) -> None:
    decisions, places = here(history)
    found = comparer(live_records(history)[10:])
    found.take(decisions.take(np.arange(len(decisions) - 20)), places[:-20])
    assert causes(found) == {compared.ONLY_HERE: 10, compared.ONLY_LIVE: 20}

    stopped = comparer(live_records(history))
    stopped.take(decisions.take(np.arange(100)), places[:100])
    assert stopped.finish(partial=True).differences == []

    of_range = Span(START_US, int(decisions.transactions.event_time_us[50]), 2**61)
    part = comparer(live_records(history), span=of_range)
    assert causes(part) == {compared.ONLY_LIVE: int((decisions.transactions.event_time_us >= of_range.from_us).sum())}
