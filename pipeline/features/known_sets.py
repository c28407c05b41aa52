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
_COLUMNS: Final = dict[str, list[tuple[int, int]]]()
"""Column of each feature here, and there, by kernel version."""


def know(declarations: Iterable[Declaration]) -> None:
    """Read blocks that were made by these declarations from now on, too."""
    for declaration in declarations:
        made = FeatureSet(declaration)
        names = _CARD_FEATURES.setdefault(made.kernel_version, made.card_features)
        both = [name for name in CARD_FEATURES if name in names]
        _COLUMNS[made.kernel_version] = [(CARD_FEATURES.index(name), names.index(name)) for name in both]


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
    for column, other in _COLUMNS[kernel]:
        own[:, column] = features[:, other]
    # As all arrays of blocks, so that compiled functions are compiled for one kind.
    own.flags.writeable = False
    return own
