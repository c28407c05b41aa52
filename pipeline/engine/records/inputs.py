"""The values that declared windows read, as columns: those of fields, where their filters hold."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.records.columns import Transactions, name_keys
from pipeline.expressions.evaluate import evaluate
from pipeline.expressions.trees import fields_in
from pipeline.features.active import Function, active_functions
from pipeline.features.catalogue import ACTIVE, ATTRIBUTE_FEATURES, ATTRIBUTES, CARD_INPUTS, FEATURES
from pipeline.features.checked_declaration import Input

_CODE_MASK: Final = np.int64(2**52 - 1)
_FUNCTIONS: Final = active_functions()
_COLUMN: Final = {name: column for column, name in enumerate(FEATURES)}
_CARRIED: Final = tuple(given for given in ACTIVE.merchant_inputs if given.column in _COLUMN)


class _Fields:
    """The fields of n transactions by name, each read once.

    Args:
        taken: The transactions.
        features: Shape (n, len(FEATURES)) or the cards' alone; None where no feature is computed yet.
    """

    def __init__(self, taken: Transactions, features: NDArray[np.float64] | None = None) -> None:
        self._taken, self._features = taken, features
        self._found: dict[str, Any] = {}

    def columns(self, names: Iterable[str]) -> dict[str, Any]:
        """Return columns for filters: numbers as doubles, NaN for none, and texts with nulls."""
        for name in names:
            if name not in self._found:
                self._found[name] = self._column(name)
        return self._found

    def values(self, given: Input) -> NDArray[np.float64]:
        """Return the values of an input; shape (n,), NaN for none."""
        n = len(self._taken)
        if not given.field:
            values = np.ones(n)
        else:
            column = self.columns([given.field])[given.field]
            values = codes(column) if isinstance(column, pa.Array) else column
        if given.where is None:
            return values
        holds = evaluate(given.where, self.columns(fields_in(given.where)), n)
        return np.where(holds, values, np.nan)

    def _column(self, name: str) -> Any:
        taken = self._taken
        if name == "amount":
            return taken.amount_base_minor / 100.0
        if name in ("hour", "weekday"):
            return getattr(taken, name)
        if name in ATTRIBUTES:
            missing = np.full(len(taken), np.nan)
            return missing if taken.attributes is None else taken.attributes[:, ATTRIBUTES.index(name)]
        if name in _COLUMN and self._features is not None:
            return self._features[:, _COLUMN[name]]
        return taken.text(name)


def codes(texts: pa.Array) -> NDArray[np.float64]:
    """Return 52 bits of the hash of each text, which a double holds exactly, NaN for null; shape (n,)."""
    values = np.full(len(texts), np.nan)
    given = texts.is_valid().to_numpy(zero_copy_only=False)
    values[given] = name_keys(texts.filter(pa.array(given)))[:, 0] & _CODE_MASK
    return values


def card_inputs(taken: Transactions) -> NDArray[np.float64] | None:
    """Return what n transactions leave in the windows of their cards; shape (n, len(CARD_INPUTS)), None without any."""
    if not CARD_INPUTS:
        return None
    fields = _Fields(taken)
    return np.column_stack([fields.values(given) for given in CARD_INPUTS])


def fill_columns(taken: Transactions, features: NDArray[np.float64]) -> None:
    """Write the attributes of n transactions, and what windows of merchants read of them, to their features.

    Args:
        taken: The transactions.
        features: Shape (n, k), k >= len(CARD_FEATURES); all else of the cards is filled.
    """
    for number, name in enumerate(ATTRIBUTE_FEATURES):
        features[:, _COLUMN[name]] = np.nan if taken.attributes is None else taken.attributes[:, number]
    fields = _Fields(taken, features)
    for given in _CARRIED:
        features[:, _COLUMN[given.column]] = fields.values(given)
    for function in ACTIVE.functions:
        columns = fields.columns(function.inputs)
        numbers = [columns[name] for name in function.inputs]
        features[:, _COLUMN[function.feature]] = _called(_FUNCTIONS[function.name], numbers)


def _called(function: Function, columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return what a function of the deployment's own makes of n rows; NaN for one for which it fails.

    It gets copies: what it writes to them is lost.
    """
    try:
        return np.asarray(function(*(np.array(column, np.float64) for column in columns)), np.float64)
    except Exception:
        if len(columns[0]) == 1:
            return np.full(1, np.nan)
        rows = range(len(columns[0]))
        return np.concatenate([_called(function, [column[row : row + 1] for column in columns]) for row in rows])
