"""The declaration of this process: `pipeline` declares it before anything imports the catalogue of features."""

import sys
from typing import Final

from pipeline.features.declaration import Declaration

_declared: list[Declaration] = []
_CATALOGUE: Final = "pipeline.features.catalogue"


def declare(declaration: Declaration) -> None:
    """Declare the fields and features of this process; its filters are trees.

    Raises:
        RuntimeError: The catalogue of features, which follows from it, was imported before.
    """
    if _CATALOGUE in sys.modules:
        raise RuntimeError(f"features are declared before {_CATALOGUE} is imported")
    _declared[:] = [declaration]


def active_declaration() -> Declaration:
    """Return what was declared; without that, the packaged set alone."""
    return _declared[0] if _declared else Declaration()
