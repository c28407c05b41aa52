"""What a backtest in the recorded order counts of its input: as the card kernel says it of each batch."""

from datetime import timedelta

import msgspec

from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, Span
from pipeline.backtest.runner.recorded_pass import count_processed
from pipeline.backtest.runner.statistics import ProgressListener, RunStatistics
from pipeline.engine.records.results import Result
from pipeline.settings import Settings
from schemas.times import US_PER_DAY
from schemas.topics import ACCEPTED_LABELS, REROUTED, TRANSACTIONS
from tests.helpers.logs import Log, after, microseconds, transaction
from tests.unit.engine.test_engine_card import Desk

HORIZON_DAYS = 2
GRACE_DAYS = 7


def statistics(from_us: int = EARLIEST_US) -> RunStatistics:
    span = Span(from_us, from_us, LATEST_US)
    return RunStatistics(span, HORIZON_DAYS * US_PER_DAY, ProgressListener(None, lambda: False))


def counted(results: list[Result], found: RunStatistics, settings: Settings | None = None) -> dict[str, int]:
    for result in results:
        count_processed(found, settings or Settings(topic_prefix=""), result)
    return found.reported_counts()


def test_refusals_repeats_and_labels_are_counted_of_every_batch() -> None:
    desk = Desk(label_days=HORIZON_DAYS)
    refused = [desk.transactions.append(b"not json", headers=(("dead-letter-error", b"of theirs"),))]
    refused.append(desk.labels.append(b"{}", after(1)))
    refused.append(Log(REROUTED).append(transaction(3), after(1)))
    results = [
        desk.buy(1, after(1)),
        desk.buy(1, after(1)),
        desk.buy(2, after(1), amount=-1),
        desk.work(refused),
        desk.say(1, after(1.5)),
        desk.say(1, after(1.5)),
    ]
    assert counted(results, statistics()) == {
        "repeated transactions": 1,
        "refused transactions: amount_negative": 1,
        "refused transactions: not_json": 1,
        "refused accepted labels: unreadable": 1,
        "refused rerouted records: rerouted_headers": 1,
        "labels: first": 1,
        "labels: repeated": 1,
    }


def test_labels_in_vain_are_refused_where_their_transaction_was_not_before_the_warm_up() -> None:
    desk = Desk(label_days=HORIZON_DAYS)
    warm_up = after(10)
    last = warm_up + timedelta(days=HORIZON_DAYS + GRACE_DAYS)
    results = [
        desk.say(1, last - timedelta(seconds=1), card_id="nobody"),
        desk.say(2, last, card_id="nobody"),
        # It counts from when it came, whenever it was made.
        desk.say(3, last - timedelta(days=3), arrived=last, card_id="nobody"),
        desk.buy(4, last + timedelta(days=GRACE_DAYS + 1)),
    ]
    found = counted(results, statistics(microseconds(warm_up)))
    assert found == {
        "labels: early": 3,
        "labels: unknown_transaction": 3,
        "labels: transaction_not_read": 1,
        "refused labels: label_without_transaction": 2,
    }
    assert counted(results, statistics())["refused labels: label_without_transaction"] == 3


def test_topics_are_known_under_their_prefix() -> None:
    desk = Desk(prefix="shop-")
    for log, topic in ((desk.transactions, TRANSACTIONS), (desk.labels, ACCEPTED_LABELS)):
        log.append(b"nonsense")
        log.records[:] = [msgspec.structs.replace(record, topic=f"shop-{topic.name}") for record in log.records]
    results = [desk.work([*desk.transactions.records, *desk.labels.records])]
    found = counted(results, statistics(), Settings(topic_prefix="shop-"))
    assert found == {"refused transactions: not_json": 1, "refused accepted labels: unreadable": 1}
