"""The labels of a training as a version keeps them, and a warning where the version is used under others."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import LEGITIMATE_LABEL_FEATURES
from pipeline.learning.regimes import LabelRegime
from pipeline.learning.report_delays import share_in_time
from pipeline.learning.reporting import Reported
from pipeline.scoring.lightgbm_model import LightGBMModel
from schemas.times import US_PER_DAY

LABELS: Final = "labels"
"""The key of a version's metadata."""
LARGEST_RATIO: Final = 1.5
"""Ratio of two maturities up to which they count as alike."""
_AGES_DAYS: Final[dict[str, tuple[float, float]]] = {
    "0-1": (0, 1),
    "1-7": (1, 7),
    "7-30": (7, 30),
    "30-": (30, np.inf),
}
_MEANINGS: Final[dict[str, str]] = {
    "all": "all transactions get labels",
    "frauds-only": "only frauds are reported",
    "mixed": "frauds and some legitimate transactions get labels",
}


class TrainedLabels(NamedTuple):
    """The labels that a version is trained on."""

    as_of_us: int
    """Only what was known by then is used."""
    maturity_us: int
    """Age from which a transaction without a report is taken as legitimate."""
    regime: Mapping[str, str | float]
    """`LabelRegime.describe`, or the part of it that is known; empty where nothing is declared."""
    report_delays: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    """`pipeline.learning.report_delays.described_by_source`; empty where delays are declared."""

    def describe(self, event_time_us: NDArray[np.int64], fraud: NDArray[np.bool_]) -> dict[str, Any]:
        """Return what a version's metadata says of them.

        Args:
            event_time_us: Event times of the rows that the version is grown on, shape (n,).
            fraud: What each is taken as, shape (n,).
        """
        age_days = (self.as_of_us - event_time_us) / US_PER_DAY

        def counted(rows: NDArray[np.bool_]) -> dict[str, int]:
            return {
                name: int(np.count_nonzero(rows & (age_days >= low) & (age_days < high)))
                for name, (low, high) in _AGES_DAYS.items()
            }

        delays = {
            "report_delays": {name: dict(delays_of_source) for name, delays_of_source in self.report_delays.items()}
        }
        return {
            "regime": dict(self.regime),
            "maturity_days": self.maturity_us / US_PER_DAY,
            "frauds_by_age_days": counted(fraud),
            "others_by_age_days": counted(~fraud),
            **(delays if self.report_delays else {}),
        }


class _Described(msgspec.Struct):
    """The part of a version's metadata that is compared; versions of before have none."""

    regime: dict[str, Any] = {}
    maturity_days: float | None = None


def warning_of_labels(model: LightGBMModel, reported: Reported, maturity_days: float | None = None) -> str | None:
    """Return a sentence if a version was trained under another label regime than it is used under.

    Args:
        model: The version.
        reported: Which transactions get labels where it is used.
        maturity_days: Days by which nine tenths of the reports come there; None: not known, and not compared.

    Returns:
        None where the regimes agree, where the version does not say, and where its features do not depend on the
        difference.
    """
    try:
        trained = msgspec.convert(model.metadata.get(LABELS, {}), _Described)
    except msgspec.ValidationError:
        return None
    was = trained.regime.get("reported")
    counting = [name for name in model.trained_on if name in LEGITIMATE_LABEL_FEATURES]
    if isinstance(was, str) and was in _MEANINGS and was != reported and counting:
        return (
            f"LightGBM {model.version} was trained where {_MEANINGS[was]}, and is used where {_MEANINGS[reported]}: "
            f"{', '.join(counting)} count legitimate labels, so that its scores mean something else here; train with "
            f"--reported {reported}, or without these features"
        )
    then = trained.maturity_days
    if then and maturity_days and not 1 / LARGEST_RATIO <= maturity_days / then <= LARGEST_RATIO:
        return (
            f"LightGBM {model.version} was trained where nine tenths of the reports come within {then:g} days, and is "
            f"used where they take {maturity_days:g}: frauds are known sooner or later than it learned; train under "
            "the delays that you have"
        )
    return None


def warning_of_share(model: LightGBMModel, maturity_us: int, reported_share: float) -> str | None:
    """Return a sentence if other reports come in time than a version's regime says.

    Args:
        model: The version.
        maturity_us: Age, in microseconds, at which a transaction without a report is presumed legitimate.
        reported_share: F, the share of the reports that are taken to come by then; above 0.

    Returns:
        None where both agree, and where the version does not say how long reports take.
    """
    try:
        trained = msgspec.convert(model.metadata.get(LABELS, {}), _Described).regime
        regime = msgspec.convert(trained, LabelRegime)
    except (msgspec.ValidationError, ValueError):
        return None
    share = share_in_time(regime, maturity_us)
    if "delay_days" not in trained or 1 / LARGEST_RATIO <= share / reported_share <= LARGEST_RATIO:
        return None
    return (
        f"LightGBM {model.version} was trained where {share:.0%} of the reports come within "
        f"{maturity_us / US_PER_DAY:g} days, and FRAUD_PIPELINE_REPORTED_SHARE is {reported_share:g}: set it to "
        f"{share:.2g}, or FRAUD_PIPELINE_MATURITY_DAYS to an age by which most reports have come"
    )
