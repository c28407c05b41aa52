"""The columns of a row, numbered once: in blocks, in what the score agent reads of them, and in decisions."""

from typing import Final

TEXTS: Final = (
    "transaction_id", "card_id", "merchant_id", "case_id", "amount", "currency", "transaction_type", "original",
    "rates_version", "source_topic", "input_topic",
)  # fmt: skip
"""Columns of text: ``amount`` as JSON, ``original`` the producer's own bytes, the others as they read. Blocks hold
the first ones; the last three are numbers of names there."""
ID, CARD, MERCHANT, CASE, AMOUNT, CURRENCY, TYPE, ORIGINAL, RATES, SOURCE, INPUT = range(len(TEXTS))

WHOLES: Final = (
    "event_time_us", "producer_offset_min", "ingested_at_us", "ingested_offset_min", "amount_base_minor", "counts",
    "case_sequence", "source_partition", "source_offset", "input_partition", "input_offset", "log_partition",
    "log_offset", "log_row", "known_at_us", "rates",
)  # fmt: skip
"""Columns of whole numbers. Behind a time stands the UTC offset in which it is written. ``input`` is where the card
agent read the record, ``log`` the position on ``profiled``. ``known_at_us``: since when a label counts; of a
transaction what the card agent's wait clock showed, 0 where that is not known. ``rates`` is equal in rows of equal
``rates_version``."""
(
    EVENT_US, PRODUCER_OFFSET, INGESTED_US, INGESTED_OFFSET, AMOUNT_BASE, COUNTS, CASE_SEQUENCE, SOURCE_PARTITION,
    SOURCE_OFFSET, INPUT_PARTITION, INPUT_OFFSET, LOG_PARTITION, LOG_OFFSET, LOG_ROW, KNOWN_AT_US, SAME_RATES,
) = range(len(WHOLES))  # fmt: skip
