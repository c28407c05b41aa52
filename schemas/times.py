"""Units of time, each in the smaller unit that its name begins with."""

from typing import Final

US_PER_MS: Final = 1_000
US_PER_SECOND: Final = 1_000_000
US_PER_HOUR: Final = 3_600 * US_PER_SECOND
US_PER_DAY: Final = 24 * US_PER_HOUR
MS_PER_DAY: Final = US_PER_DAY // US_PER_MS
SECONDS_PER_DAY: Final = US_PER_DAY // US_PER_SECOND
