"""Units of time, each in the smaller unit that its name begins with, and times as text."""

from datetime import UTC, datetime, timedelta
from typing import Final

US_PER_MS: Final = 1_000
US_PER_SECOND: Final = 1_000_000
US_PER_HOUR: Final = 3_600 * US_PER_SECOND
US_PER_DAY: Final = 24 * US_PER_HOUR
MS_PER_DAY: Final = US_PER_DAY // US_PER_MS
SECONDS_PER_DAY: Final = US_PER_DAY // US_PER_SECOND
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def time_of(time_us: int) -> datetime:
    """Return the time of microseconds since 1970; `schemas.codec.timestamp_us` is the way back.

    >>> time_of(1_000_005)
    datetime.datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=datetime.timezone.utc)
    """
    return EPOCH + timedelta(microseconds=time_us)


def time_text(time_us: int) -> str:
    """Return the time of microseconds since 1970 as RFC 3339, to the second.

    >>> time_text(1_000_000)
    '1970-01-01T00:00:01Z'
    """
    return time_of(time_us).isoformat(timespec="seconds").replace("+00:00", "Z")


def moment(time_us: int) -> str:
    """Return the time of microseconds since 1970 as people write it, in UTC, to the second.

    >>> moment(1_000_000)
    '1970-01-01 00:00:01'
    """
    return f"{time_of(time_us):%Y-%m-%d %H:%M:%S}"


def utc_text(moment: datetime) -> str:
    """Return an aware time in UTC, to the second.

    >>> utc_text(datetime(2026, 3, 1, 9, 30, 5, tzinfo=UTC))
    '2026-03-01 09:30:05 UTC'
    """
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
