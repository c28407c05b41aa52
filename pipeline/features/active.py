"""The declaration of this process: `pipeline` declares it before anything imports the catalogue of features."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pipeline.features.declaration import Declaration, packaged_declaration, resolved

Function = Callable[..., Any]
"""A function of the deployment's own: columns of n numbers to n numbers, as arrays of float64."""


class _Active(NamedTuple):
    declaration: Declaration
    functions: Mapping[str, Function]


_active: list[_Active] = []
_CATALOGUE: Final = "pipeline.features.catalogue"


def declare(declaration: Declaration, functions: Mapping[str, Function] | None = None) -> None:
    """Declare the fields and features of this process.

    Args:
        declaration: With its filters as trees.
        functions: The functions that it names.

    Raises:
        RuntimeError: The catalogue of features, which follows from it, was imported before.
    """
    if _CATALOGUE in sys.modules:
        raise RuntimeError(f"features are declared before {_CATALOGUE} is imported")
    _active[:] = [_Active(resolved(declaration), functions or {})]


def active_declaration() -> Declaration:
    """Return what was declared; without that, the packaged set alone."""
    return _active[0].declaration if _active else packaged_declaration()


def active_functions() -> Mapping[str, Function]:
    """Return the functions that the declaration names."""
    return _active[0].functions if _active else {}
