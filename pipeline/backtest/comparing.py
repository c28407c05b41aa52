"""Finds the live decisions that a backtest of topics is compared with."""

from pipeline.backtest.joined import LiveDecisions
from pipeline.backtest.live import Comparer
from pipeline.backtest.order import Order
from pipeline.backtest.sources import Span, TopicSource
from schemas.topics import DECISION_FEATURES, DECISIONS, TRANSACTIONS


def live_decisions(source: TopicSource, span: Span, *, features: bool) -> LiveDecisions:
    """Return the live decisions about the transactions of a span's range.

    Args:
        source: The topics.
        span: The range, with its warm-up.
        features: Whether each is joined to its features.

    Raises:
        TopicError: A topic is missing.
    """
    written = source.written_in(span)
    decisions = source.ranges(DECISIONS, written, 0, to_end=True)
    blocks = source.ranges(DECISION_FEATURES, written, 0, to_end=True) if features else None
    return LiveDecisions(source, span, decisions, blocks)


def comparer_with(live: LiveDecisions, source: TopicSource, span: Span, order: Order) -> Comparer:
    """What compares with them decisions that are made in ``order``. Raises `TopicError`."""
    comparer = Comparer(live, order)
    ranges = source.ranges(TRANSACTIONS, span, 0, to_end=True)
    # The log holds records before those that warm the windows up, or did once.
    if any(of.start > 0 for of in ranges.values()):
        comparer.began(span.warm_up_from_us)
    return comparer
