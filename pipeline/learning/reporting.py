"""Constants about reports for settings, which every command imports, and computes nothing with."""

from typing import Final, Literal

Reported = Literal["all", "frauds-only", "mixed"]
"""Names for which transactions get labels (`pipeline.learning.regimes.LabelRegime.reported`)."""
LEAST_SHARE: Final = 0.2
"""Least F that weights allow for: a fraud never weighs more than its inverse (`pipeline.learning.report_delays`)."""
