"""Functions of a deployment's own that make a feature of columns, from the module that a variable names."""

import hashlib
import importlib
import inspect
import math
import os
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any, Final

from pipeline.features.active import Function

MODULE: Final = "FRAUD_PIPELINE_FEATURES_MODULE"
_ROWS: Final = 1_000
_VALUES: Final = (0.0, 1.0, -1.0, 0.5, 1e9, -1e-9, math.nan, math.inf)


class FunctionError(ValueError):
    """A function that cannot be used; the text says why."""


def own_functions(names: Mapping[str, int]) -> dict[str, Function]:
    """Return the functions of these names, compiled.

    Args:
        names: Number of columns of each.

    Raises:
        FunctionError: One is not there, is not compiled by Numba, or gives a row another value beside other rows.
    """
    if not names:
        return {}
    module = os.environ.get(MODULE)
    if not module:
        raise FunctionError(f"functions are declared: set {MODULE} to the module that has {', '.join(names)}")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise FunctionError(f"{MODULE} names {module}, which cannot be imported: {error}") from error
    return {name: _checked(found, name, columns) for name, columns in names.items()}


def source_digest() -> str:
    """Return 16 hexadecimal digits that stand for the source of the module, with all that its functions use of it."""
    source = inspect.getsource(importlib.import_module(os.environ[MODULE]))
    return hashlib.sha256(source.encode()).hexdigest()[:16]


@cache
def _checked(module: ModuleType, name: str, columns: int) -> Function:
    """Return a function of a module, compiled, once; raises as `own_functions`."""
    function: Any = getattr(module, name, None)
    if not hasattr(function, "py_func"):
        raise FunctionError(
            f"{module.__name__} has no function {name} that Numba compiles: decorate it with numba.njit"
        )
    # Settings are imported by every command, which need not load what computes.
    import numpy as np

    random = np.random.default_rng(0)
    given = [random.choice(_VALUES, _ROWS) for _ in range(columns)]
    try:
        whole = np.asarray(function(*(column.copy() for column in given)))
        single = [np.asarray(function(*(column[row : row + 1].copy() for column in given))) for row in range(_ROWS)]
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FunctionError(f"{name} fails for {columns} columns of numbers: {why}") from error
    if whole.dtype != np.float64 or whole.shape != (_ROWS,):
        raise FunctionError(f"{name} returns {whole.dtype} of shape {whole.shape}, not float64 of a value for each row")
    if whole.tobytes() != np.concatenate(single).tobytes():
        raise FunctionError(f"{name} gives a row another value beside other rows: let it go by each row alone")
    checked: Function = function
    return checked
