"""The features that follow from a declaration, their columns, and the tables by which kernels compute them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.expressions.trees import check_tree
from pipeline.features.built_in import (
    BUILT_IN_CARD,
    BUILT_IN_MERCHANT,
    CARD,
    LATENESS_US,
    MERCHANT,
    MONTH_US,
    NUMBER,
    Feature,
)
from pipeline.features.checked_declaration import (
    FIELD_REASON,
    Group,
    Input,
    Ratio,
    check_declaration,
    inputs_of,
)
from pipeline.features.declaration import Declaration, packaged_declaration, resolved

KERNEL_REVISION: Final = 3
"""Raised whenever a definition changes without changing a name."""
_DIGITS: Final = 8


def is_comparable(kernel: str) -> bool:
    """Return whether features of a kernel version mean what those of the same name mean here.

    A name keeps its meaning: no declaration is published that gives it another one, and the revision is raised where a
    built-in one changes.
    """
    return kernel.startswith(f"{KERNEL_REVISION}-")


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


class FeatureSet:
    """The features of a declaration, in the order in which every matrix, model and message holds them.

    Args:
        declaration: With its filters as trees; raises `DeclarationError` where it cannot be used.
    """

    def __init__(self, declaration: Declaration) -> None:
        declaration = resolved(declaration)
        checked = check_declaration(declaration, check_tree)
        self.declaration, self._groups, self._ratios = declaration, checked.groups, checked.ratios
        chosen = checked.built_in | {"amount"}
        own: dict[str, list[Feature]] = {"transaction": [], "card": [], "merchant": []}
        for feature in checked.own:
            own[feature.entity].append(feature)
        self.card_inputs = inputs_of(checked.groups["card"])
        """Values that each transaction leaves in the windows of its card, besides its amount and merchant."""
        self.merchant_inputs = inputs_of(checked.groups["merchant"])
        """Values that each transaction leaves in the windows of its merchant: columns of features bring them there."""
        self.numbers = tuple(name for name, field in declaration.fields.items() if field.type == "number")
        """Declared numbers, by their keys in ``attributes``."""
        self.texts = tuple(name for name, field in declaration.fields.items() if field.type == "text")
        self.carried = tuple(self._carried({feature.name: feature.meaning for feature in own["merchant"]}))
        card = [feature for feature in BUILT_IN_CARD if feature.name in chosen]
        card += [*own["transaction"], *self.carried, *own["card"]]
        merchant = [feature for feature in BUILT_IN_MERCHANT if feature.name in chosen]
        merchant += own["merchant"]
        self.declared = (*card, *merchant)
        """All features, in order."""
        self.card_features, self.merchant_features = _names(card), _names(merchant)
        self.features = (*self.card_features, *self.merchant_features)
        self.functions = checked.functions
        self.attribute_features = tuple(f"attribute_{name}" for name in self.numbers)
        """Features that are `numbers`, in the same order."""
        others = [feature for feature in own["transaction"] if feature.name not in self.attribute_features]
        self.window_features = _names((*others, *own["card"], *own["merchant"]))
        """Declared functions, windows and ratios."""
        self.default_features = tuple(name for name in self.features if name in checked.trained)
        """Used by a training that names no features."""
        spans = [us for groups in checked.groups.values() for group in groups for us in group.windows_us]
        self.longest_window_us = max(MONTH_US, *spans) if spans else MONTH_US
        self.horizon_us = self.longest_window_us + LATENESS_US
        card_us = max([2 * MONTH_US, *(us for group in checked.groups["card"] for us in group.windows_us)])
        filtered = [group for group in checked.groups["merchant"] if group.input and group.input.where is not None]
        of_filters = [us + card_us for group in filtered for us in group.windows_us]
        self.reach_us = max([self.longest_window_us + MONTH_US, *of_filters])
        """Reach of features into the past: ``card_outlier_count_30d`` counts transactions of its window, each of which
        was an outlier among those of its own; a filter of merchants may read such a feature."""
        self.kernel_version = f"{KERNEL_REVISION}-{_digest(self.features, [*self.definitions.items()])}"
        """Names what the features are and how they are computed."""
        held = (self.card_inputs, self.merchant_inputs, self.horizon_us)
        self.state_version = f"{KERNEL_REVISION}-{_digest(*held)}"
        """Names what the windows hold of each event: declarations that agree in it read each other's state."""

    @property
    def count(self) -> int:
        """Number of features, without what only travels to the merchants' windows."""
        return len(self.features) - len(self.carried)

    @cached_property
    def card_plan(self) -> Plan:
        """The tables of the cards' kernel."""
        return _plan(self.card_features, CARD, self._groups["card"], self._ratios["card"])

    @cached_property
    def merchant_plan(self) -> Plan:
        """The tables of the merchants' kernel."""
        return _plan(self.merchant_features, MERCHANT, self._groups["merchant"], self._ratios["merchant"])

    @cached_property
    def input_columns(self) -> NDArray[np.int64]:
        """Columns of ``features`` that bring ``merchant_inputs``; shape (i,)."""
        return np.array([self.features.index(self._column(given)) for given in self.merchant_inputs], np.int64)

    @cached_property
    def definitions(self) -> dict[str, Any]:
        """Definitions of the declared functions, windows and ratios, keyed by the feature's name."""
        found: dict[str, Any] = {}
        for group in (group for groups in self._groups.values() for group in groups):
            for name, window in zip(group.names, group.windows_us, strict=True):
                found[name] = [group.aggregate.name, group.input, window]
        found |= {ratio.name: ratio.inputs for ratios in self._ratios.values() for ratio in ratios}
        found |= {function.feature: [function.inputs, function.source] for function in self.functions}
        return found

    def _column(self, given: Input) -> str:
        """Return the name of the feature that brings a value to the windows of merchants."""
        return f"attribute_{given.field}" if given.where is None and given.field in self.numbers else given.column

    def _carried(self, meanings: Mapping[str, str]) -> Iterable[Feature]:
        for given in self.merchant_inputs:
            if self._column(given) == given.column:
                # The definition has the condition; a sentence for analysts has no names of features.
                read_by = next(group.names[0] for group in self._groups["merchant"] if group.input == given)
                yield Feature(
                    "transaction", given.column, NUMBER, f"what the sale adds to the {meanings[read_by]}",
                    f"`{given}`; of a text, 52 bits of its hash", FIELD_REASON,
                )  # fmt: skip


_PACKAGED: Final = check_declaration(packaged_declaration(), check_tree)
PACKAGED: Final = _PACKAGED.built_in
"""Names of the default set."""
TRAINED: Final = _PACKAGED.trained
"""Those that a training takes by default; decisions 0041 and 0071 say why these."""


def _names(features: Iterable[Feature]) -> tuple[str, ...]:
    return tuple(feature.name for feature in features)


def _plan(names: Sequence[str], columns: Any, groups: Sequence[Group], ratios: Sequence[Ratio]) -> Plan:
    inputs, rows, windows = inputs_of(groups), list[tuple[int, ...]](), list[int]()
    for group in groups:
        end = len(windows) + len(group.windows_us)
        given = -1 if group.input is None else inputs.index(group.input)
        rows.append((group.aggregate.code, given, names.index(group.names[0]), len(windows), end))
        windows += group.windows_us
    return Plan(
        _table([(k, names.index(name)) for k, name in enumerate(columns._fields) if name in names], 2),
        _table(rows, 5),
        np.array(windows, np.int64),
        _table([(names.index(ratio.name), *map(names.index, ratio.inputs)) for ratio in ratios], 3),
        np.array([given.scale for given in inputs], np.float64),
    )


def _table(rows: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, width)


def _digest(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_DIGITS]
