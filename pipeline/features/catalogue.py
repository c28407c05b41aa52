"""The features of this process, in the order in which every matrix, model and message holds them.

They follow from the declaration that is active in it (`pipeline.features.active`).
"""

from typing import Final

from pipeline.features.active import active_declaration
from pipeline.features.built_in import SILENCE_FEATURES
from pipeline.features.feature_set import FeatureSet

ACTIVE: Final = FeatureSet(active_declaration())
DECLARED: Final = ACTIVE.declared
"""All features, in order."""
CARD_FEATURES: Final = ACTIVE.card_features
"""Those that the card agent computes: a block of ``profiled`` holds them."""
MERCHANT_FEATURES: Final = ACTIVE.merchant_features
FEATURES: Final = ACTIVE.features
ATTRIBUTE_FEATURES: Final = ACTIVE.attribute_features
"""Numbers that producers send in ``attributes``."""
ATTRIBUTES: Final = ACTIVE.numbers
"""Their keys there, in the same order."""
WINDOW_FEATURES: Final = ACTIVE.window_features
"""Declared functions, windows and ratios."""
BY_NAME: Final = {feature.name: feature for feature in DECLARED}
MEANINGS: Final = {feature.name: feature.meaning for feature in DECLARED}
DEFAULT_FEATURES: Final = ACTIVE.default_features
"""Used by a training that names no features."""
LEGITIMATE_LABEL_FEATURES: Final = tuple(feature.name for feature in DECLARED if feature.legitimate_labels)
SILENCE: Final = {age_us: names for age_us, names in SILENCE_FEATURES.items() if {*names} <= {*FEATURES}}
"""`SILENCE_FEATURES` that are declared."""
CARD_INPUTS: Final = ACTIVE.card_inputs
MERCHANT_INPUTS: Final = ACTIVE.merchant_inputs
INPUT_COLUMNS: Final = ACTIVE.input_columns
"""Columns of `FEATURES` that bring `MERCHANT_INPUTS`."""
CARD_PLAN: Final = ACTIVE.card_plan
MERCHANT_PLAN: Final = ACTIVE.merchant_plan
LONGEST_WINDOW_US: Final = ACTIVE.longest_window_us
HORIZON_US: Final = ACTIVE.horizon_us
REACH_US: Final = ACTIVE.reach_us
KERNEL_VERSION: Final = ACTIVE.kernel_version
STATE_VERSION: Final = ACTIVE.state_version
