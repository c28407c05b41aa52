"""Drift of features between a range and the training data of the models that scored it."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.scores.decisions import Decisions
from pipeline.scoring.distributions import BinCounter, FeatureDistribution
from pipeline.scoring.lightgbm_model import LightGBMModel

_LEAST_SHARE: Final = 1e-4
"""Stands for a share of none, whose logarithm there is not."""


class ModelDrift(NamedTuple):
    """Features in the training of a LightGBM version, and in what it scored; of the same bins, in the same order."""

    lightgbm: str
    """The version."""
    variants: tuple[str, ...]
    """Whose decisions it scored."""
    before: tuple[FeatureDistribution, ...]
    """None of them where the version does not tell."""
    now: tuple[FeatureDistribution, ...]

    def stability_index(self) -> NDArray[np.float64]:
        """The population stability index of each feature, shape (features,); NaN where a population is empty.

        The symmetric Kullback-Leibler divergence of the binned shares p and q, the sum of (p - q) ln(p / q), as it is
        used in credit scoring (Siddiqi, "Credit Risk Scorecards", 2006); below 0.1 is commonly read as stable, above
        0.25 as moved. What has no value is a bin of its own.
        """
        return np.array([_divergence(*shares) for shares in self._shares()])

    def ks_statistic(self) -> NDArray[np.float64]:
        """The two-sample Kolmogorov-Smirnov statistic of each feature, shape (features,), looked at between bins.

        The largest difference of the two cumulative shares among rows with a value, and so at most what it is between
        all values; NaN where a population has none.
        """
        return np.array([_distance(p[:-1], q[:-1]) for p, q in self._shares()])

    def missing(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The share of rows without a value in the training and in the range, each of shape (features,)."""
        shares = self._shares()
        return np.array([p[-1] for p, _ in shares]), np.array([q[-1] for _, q in shares])

    def _shares(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return [(_share(earlier), _share(later)) for earlier, later in zip(self.before, self.now, strict=True)]


class DriftCounter:
    """Counts the features of what each LightGBM version scored; memory is that of the bins."""

    def __init__(self) -> None:
        self._variants: dict[str, dict[str, None]] = {}
        self._before: dict[str, tuple[FeatureDistribution, ...]] = {}
        self._counters: dict[str, BinCounter] = {}

    def add(self, outcomes: Mapping[str, Decisions], first: Mapping[str, LightGBMModel]) -> None:
        """Count some transactions as each variant decided about them.

        With the training of the ``first`` model of a variant that is renewed, the whole range is compared.
        """
        counted = set()
        for name, decisions in outcomes.items():
            model = first.get(name, decisions.models.lightgbm)
            if not len(decisions):
                continue
            self._variants.setdefault(model.version, {})[name] = None
            if model.version in counted:
                continue
            counted.add(model.version)
            if model.version not in self._counters:
                self._before[model.version] = model.distributions
                self._counters[model.version] = BinCounter.like(model.distributions)
            self._counters[model.version].add(decisions.features)

    def found(self) -> list[ModelDrift]:
        """Return the drift of each version that scored, in the order in which they came."""
        return [
            ModelDrift(version, tuple(self._variants[version]), self._before[version], counter.distributions())
            for version, counter in self._counters.items()
        ]


def _share(distribution: FeatureDistribution) -> NDArray[np.float64]:
    counts = np.array(distribution.counts)
    total = counts.sum()
    return counts / total if total else np.full(len(counts), np.nan)


def _divergence(reference: NDArray[np.float64], current: NDArray[np.float64]) -> float:
    p, q = (np.maximum(shares, _LEAST_SHARE) for shares in (reference, current))
    return float(np.sum((p - q) * np.log(p / q)))


def _distance(reference: NDArray[np.float64], current: NDArray[np.float64]) -> float:
    if not reference.sum() or not current.sum():
        return float("nan")
    p, q = (np.cumsum(shares) / shares.sum() for shares in (reference, current))
    return float(np.max(np.abs(p - q)))
