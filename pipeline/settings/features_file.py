"""The file that declares a deployment's own fields and features (TOML, or the JSON of a record)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from pipeline.expressions.trees import Condition, ValueKind
from pipeline.features.active import Function, declare
from pipeline.features.checked_declaration import check_declaration, decode_declaration
from pipeline.features.declaration import Declaration, DeclarationError, declaration_of, resolved
from pipeline.settings.feature_functions import MODULE, FunctionError, own_functions, source_digest
from schemas.toml_files import InvalidToml, shown, toml_tables

_FUNCTION: Final = "function"
MAX_JSON_BYTES: Final = 1024 * 1024
VARIABLE: Final = "FRAUD_PIPELINE_FEATURES_FILE"


class FeaturesError(ValueError):
    """A file of features that cannot be used; the text says where, and what it should be."""


def declare_features(file: Path) -> None:
    """Declare what a file does; raises `FeaturesError` for one that cannot be read, or used."""
    declaration = features_of(file)
    declare(declaration, functions_of(declaration))


def functions_of(declaration: Declaration) -> dict[str, Function]:
    """Return the functions that a declaration names; raises `FeaturesError` where one is missing or another one."""
    try:
        return _meant(declaration)
    except FunctionError as error:
        raise FeaturesError(str(error)) from error


def _meant(declaration: Declaration) -> dict[str, Function]:
    """Return the functions that a declaration names; `FunctionError` where it was made for another source."""
    named = {table.name: len(table.inputs) for table in declaration.features if table.aggregate == _FUNCTION}
    functions = own_functions(named)
    own = source_digest() if functions else ""
    if other := next((table for table in declaration.features if table.source not in ("", own)), None):
        raise FunctionError(
            f"{MODULE} has another source ({own}) than the one that is declared with {other.name} ({other.source}): a "
            "function keeps its meaning; give a changed one another name, and its own module"
        )
    return functions


def features_of(file: Path) -> Declaration:
    """Return the declaration of a file; raises `FeaturesError` for one that cannot be read, or used."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FeaturesError(f"{VARIABLE} names {file}, which cannot be read: {error.strerror}") from error
    return read_features_file(content, str(file))


def read_features_file(content: bytes, name: str) -> Declaration:
    """Return the declaration of a file's content, with its filters as trees.

    Args:
        content: TOML, such as ``[fields.device_risk]`` with ``type = "number"`` and ``meaning``; or the JSON that
            ``fraud-pipeline features publish`` writes to ``models``, which names its filters' trees.
        name: Name of the file, for errors.

    Raises:
        FeaturesError: It declares nothing that can be used.
    """
    text = ""
    try:
        if content.startswith(b"{"):
            return _with_sources(decode_declaration(content[:MAX_JSON_BYTES]))
        tables = toml_tables(content)
        text = content.decode()
        declaration = declaration_of(tables)
        return _with_sources(resolved(check_declaration(declaration, _parsed).declaration))
    except FunctionError as error:
        raise FeaturesError(f"{name}: {error}") from error
    except InvalidToml as error:
        raise FeaturesError(f"{name}: {error}") from error
    except DeclarationError as error:
        raise FeaturesError(f"{_where(name, text, error)}: {error}") from error


def _with_sources(declaration: Declaration) -> Declaration:
    """Return a declaration that says which functions it means; raises as `_meant`."""
    if not _meant(declaration):
        return declaration
    own = source_digest()
    tables = [
        structs.replace(table, source=own) if table.aggregate == _FUNCTION else table for table in declaration.features
    ]
    return structs.replace(declaration, features=tuple(tables))


def _parsed(text: Any, kinds: Mapping[str, ValueKind]) -> Condition:
    # The parser is loaded where a filter is read only: a worker reads trees.
    from pipeline.expressions.parse import parse_expression

    return parse_expression(text, kinds)


def _where(name: str, text: str, error: DeclarationError) -> str:
    """Return the place of an error: the file, its line if the table's header is found, and the table."""
    if error.table == "fields":
        key = re.escape(str(error.key))
        header, number = rf"""^[ \t]*\[[ \t]*fields[ \t]*\.[ \t]*["']?{key}["']?[ \t]*\]""", 0
        label = f": [fields.{shown(str(error.key))}]"
    elif error.table == "features":
        header, number = r"^[ \t]*\[\[[ \t]*features[ \t]*\]\]", int(error.key)
        label = f": feature {number + 1}"
    else:
        return name
    found = [match.start() for match in re.finditer(header, text, re.MULTILINE)]
    line = f", line {text.count(chr(10), 0, found[number]) + 1}" if number < len(found) else ""
    return f"{name}{line}{label}"
