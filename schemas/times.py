"""Units of time, each in the smaller unit that its name begins with, and times as text."""

from datetime import UTC, datetime
from typing import Final

US_PER_MS: Final = 1_000
US_PER_SECOND: Final = 1_000_000
US_PER_HOUR: Final = 3_600 * US_PER_SECOND
US_PER_DAY: Final = 24 * US_PER_HOUR
MS_PER_DAY: Final = US_PER_DAY // US_PER_MS
SECONDS_PER_DAY: Final = US_PER_DAY // US_PER_SECOND


def utc_text(moment: datetime) -> str:
    """Return an aware time in UTC, to the second.

    >>> utc_text(datetime(2026, 3, 1, 9, 30, 5, tzinfo=UTC))
    '2026-03-01 09:30:05 UTC'
    """
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
