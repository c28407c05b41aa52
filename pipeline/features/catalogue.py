"""The features of this process, in the order in which every matrix, model and message holds them.

They follow from the declaration that is active: the built-in features that it chooses, its fields, and its windows.
"""

import hashlib
import tomllib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.expressions.trees import check_tree, fields_in
from pipeline.features.active import active_declaration
from pipeline.features.built_in import (
    BUILT_IN_CARD,
    BUILT_IN_MERCHANT,
    CARD,
    LATENESS_US,
    MERCHANT,
    MONTH_US,
    NUMBER,
    SILENCE_FEATURES,
    Feature,
)
from pipeline.features.declaration import (
    BUILT_IN,
    CONTRACT_FIELDS,
    DEFAULT,
    FIELD_REASON,
    Declaration,
    Group,
    Input,
    Ratio,
    check_declaration,
    declaration_of,
    inputs_of,
)

KERNEL_REVISION: Final = 4
"""Raised whenever a definition changes without changing a name."""
_DIGITS: Final = 8


def packaged_declaration() -> Declaration:
    """Return the default set, which is a file of this package."""
    return declaration_of(tomllib.loads(files("pipeline").joinpath("data/features.toml").read_text(encoding="utf-8")))


PACKAGED: Final = check_declaration(packaged_declaration(), check_tree).built_in
"""Names of the default set."""
DECLARATION: Final = active_declaration()
_CHECKED: Final = check_declaration(DECLARATION, check_tree)
_CHOSEN: Final = (
    _CHECKED.built_in | {"amount"} | {DEFAULT: PACKAGED, "all": {*BUILT_IN}}.get(DECLARATION.extends, set())
)
CARD_INPUTS: Final = inputs_of(_CHECKED.groups["card"])
"""Values that each transaction leaves in the windows of its card, besides its amount and merchant."""
MERCHANT_INPUTS: Final = inputs_of(_CHECKED.groups["merchant"])
"""Values that each transaction leaves in the windows of its merchant: columns of features bring them there."""


def _is_field(name: str) -> bool:
    return name in DECLARATION.fields and DECLARATION.fields[name].type == "number"


def _column(given: Input) -> str:
    """Return the name of the feature that brings a value to the windows of merchants."""
    return f"attribute_{given.field}" if given.where is None and _is_field(given.field) else given.column


def _carried() -> Iterable[Feature]:
    for given in MERCHANT_INPUTS:
        if _column(given) == given.column:
            definition = f"`{given}`, for windows of merchants; of a text, 52 bits of its hash"
            yield Feature(
                "transaction", given.column, NUMBER, f"{given}, as merchants' windows read it", definition, FIELD_REASON
            )


def _own(entity: str) -> Iterable[Feature]:
    return (feature for feature in _CHECKED.own if feature.entity == entity)


CARRIED: Final = tuple(_carried())
_CARD: Final = (
    *(feature for feature in BUILT_IN_CARD if feature.name in _CHOSEN), *_own("transaction"), *CARRIED, *_own("card")
)  # fmt: skip
_MERCHANT: Final = (*(feature for feature in BUILT_IN_MERCHANT if feature.name in _CHOSEN), *_own("merchant"))
DECLARED: Final = (*_CARD, *_MERCHANT)
"""All features, in order."""


def _names(features: Iterable[Feature]) -> tuple[str, ...]:
    return tuple(feature.name for feature in features)


CARD_FEATURES: Final = _names(_CARD)
"""Those that the card agent computes: a block of ``profiled`` holds them."""
MERCHANT_FEATURES: Final = _names(_MERCHANT)
FEATURES: Final = (*CARD_FEATURES, *MERCHANT_FEATURES)
ATTRIBUTE_FEATURES: Final = _names(_own("transaction"))
"""Numbers that producers send in ``attributes``."""
ATTRIBUTES: Final = tuple(name for name in DECLARATION.fields if _is_field(name))
"""Their keys there, in the same order."""
WINDOW_FEATURES: Final = _names(feature for feature in _CHECKED.own if feature.entity != "transaction")
"""Declared windows and ratios."""
BY_NAME: Final = {feature.name: feature for feature in DECLARED}
MEANINGS: Final = {feature.name: feature.meaning for feature in DECLARED}
DEFAULT_FEATURES: Final = tuple(
    name
    for name in FEATURES
    if name not in _names(CARRIED) and name in PACKAGED | _CHECKED.built_in | {*_names(_CHECKED.own)}
)
"""Used by a training that names no features: all that is declared."""
LEGITIMATE_LABEL_FEATURES: Final = _names(feature for feature in DECLARED if feature.legitimate_labels)
SILENCE: Final = {age: names for age, names in SILENCE_FEATURES.items() if set(names) <= {*FEATURES}}
"""`SILENCE_FEATURES` that are declared."""


def _fields() -> Iterable[str]:
    for given in (*CARD_INPUTS, *MERCHANT_INPUTS):
        yield given.field
        if given.where is not None:
            yield from fields_in(given.where)


READ_FIELDS: Final = frozenset(_fields())
"""Names of all that values and filters read."""
TEXTS_READ: Final = frozenset(name for name in READ_FIELDS if name in CONTRACT_FIELDS or name in DECLARATION.fields) - {
    *ATTRIBUTES
}
LONGEST_WINDOW_US: Final = (
    max(MONTH_US, *(us for groups in _CHECKED.groups.values() for group in groups for us in group.windows_us))
    if any(_CHECKED.groups.values())
    else MONTH_US
)
HORIZON_US: Final = LONGEST_WINDOW_US + LATENESS_US
REACH_US: Final = LONGEST_WINDOW_US + MONTH_US * (2 if any(given.where for given in MERCHANT_INPUTS) else 1)
"""Reach of features into the past: ``card_outlier_count_30d`` counts transactions of its window, each of which was an
outlier among those of its own; a filter of merchants may read such a feature."""


class Plan(NamedTuple):
    """The tables by which a kernel computes the features of one entity; columns count from its first feature."""

    built_in: NDArray[np.int64]
    """Shape (b, 2): column of the built-in row, and column that gets it."""
    groups: NDArray[np.int64]
    """Shape (g, 5): aggregate, input or -1 for the amount, first column, and first and last + 1 of ``windows_us``."""
    windows_us: NDArray[np.int64]
    """Shape (w,): ascending within a group."""
    ratios: NDArray[np.int64]
    """Shape (r, 3): column, and the two columns that it is of."""
    scales: NDArray[np.float64]
    """Shape (i,): steps of each input's values; the kernel holds whole numbers of them."""


def _plan(names: Sequence[str], columns: NamedTuple, groups: Sequence[Group], ratios: Sequence[Ratio]) -> Plan:
    inputs, rows, windows = inputs_of(groups), [], []
    for group in groups:
        end = len(windows) + len(group.windows_us)
        given = -1 if group.input is None else inputs.index(group.input)
        rows.append((group.aggregate.code, given, names.index(group.names[0]), len(windows), end))
        windows += group.windows_us
    return Plan(
        _table([(k, names.index(name)) for k, name in enumerate(columns._fields) if name in names], 2),
        _table(rows, 5),
        np.array(windows, np.int64),
        _table([(names.index(ratio.name), *map(names.index, ratio.of)) for ratio in ratios], 3),
        np.array([given.scale for given in inputs]),
    )


def _table(rows: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, width)


CARD_PLAN: Final = _plan(CARD_FEATURES, CARD, _CHECKED.groups["card"], _CHECKED.ratios["card"])
MERCHANT_PLAN: Final = _plan(MERCHANT_FEATURES, MERCHANT, _CHECKED.groups["merchant"], _CHECKED.ratios["merchant"])
INPUT_COLUMNS: Final = np.array([FEATURES.index(_column(given)) for given in MERCHANT_INPUTS], np.int64)
"""Columns of `FEATURES` that bring `MERCHANT_INPUTS`."""


def _digest(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_DIGITS]


def _definitions() -> list[object]:
    return [
        [group.aggregate.name, group.input, group.windows_us, group.names]
        for groups in _CHECKED.groups.values()
        for group in groups
    ] + [[*ratio] for ratios in _CHECKED.ratios.values() for ratio in ratios]


KERNEL_VERSION: Final = f"{KERNEL_REVISION}-{_digest(FEATURES, _definitions())}"
"""Names what the features are and how they are computed."""
STATE_VERSION: Final = f"{KERNEL_REVISION}-{_digest(CARD_INPUTS, MERCHANT_INPUTS, HORIZON_US)}"
"""Names what the windows hold of each event: declarations that agree in it read each other's state."""
