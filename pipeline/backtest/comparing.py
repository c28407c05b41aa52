"""Finds the live decisions that a backtest of topics is compared with."""

from pipeline.backtest.live import Comparer, LiveDecisions
from pipeline.backtest.order import Order
from pipeline.backtest.sources import Span, TopicSource
from schemas.topics import DECISIONS, TRANSACTIONS


def live_decisions(source: TopicSource, span: Span) -> LiveDecisions:
    """Those about the transactions of the span's range. Raises `TopicError`."""
    return LiveDecisions(source, span, source.ranges(DECISIONS, source.written_in(span), 0, to_end=True))


def comparer_with(live: LiveDecisions, source: TopicSource, span: Span, order: Order) -> Comparer:
    """What compares with them decisions that are made in ``order``. Raises `TopicError`."""
    comparer = Comparer(live, order)
    ranges = source.ranges(TRANSACTIONS, span, 0, to_end=True)
    # The log holds records before those that warm the windows up, or did once.
    if any(of.start > 0 for of in ranges.values()):
        comparer.began(span.warm_up_from_us)
    return comparer
