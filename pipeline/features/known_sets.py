"""The feature sets whose blocks this process reads: its own, and those of declarations that are published."""

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import CARD_FEATURES, KERNEL_VERSION
from pipeline.features.declaration import Declaration
from pipeline.features.feature_set import FeatureSet

_CARD_FEATURES: Final = {KERNEL_VERSION: CARD_FEATURES}
"""The cards' features of each kernel version that is known, in the order of its blocks."""


def know(declarations: Iterable[Declaration]) -> None:
    """Read blocks that were made by these declarations from now on, too."""
    for declaration in declarations:
        made = FeatureSet(declaration)
        _CARD_FEATURES.setdefault(made.kernel_version, made.card_features)


def is_known(kernel: str) -> bool:
    """Return whether blocks of a kernel version can be read."""
    return kernel in _CARD_FEATURES


def own_card_features(kernel: str, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cards' features of a block by their names.

    Args:
        kernel: Kernel version of the block, which is known.
        features: Shape (n, k), as the block has them.

    Returns:
        Shape (n, len(CARD_FEATURES)), NaN for those that its declaration lacks.

    Raises:
        ValueError: It has another number of features than its kernel.
    """
    names = _CARD_FEATURES[kernel]
    if len(features) and features.shape[1] != len(names):
        raise ValueError(f"a transaction has {features.shape[1]} features, not {len(names)}")
    if kernel == KERNEL_VERSION or not len(features):
        return features
    own = np.full((len(features), len(CARD_FEATURES)), np.nan)
    for column, name in enumerate(CARD_FEATURES):
        if name in names:
            own[:, column] = features[:, names.index(name)]
    # As all arrays of blocks, so that compiled functions are compiled for one kind.
    own.flags.writeable = False
    return own
