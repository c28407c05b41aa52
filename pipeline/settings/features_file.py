"""The file that declares a deployment's own features (TOML): numbers that its producers state."""

import re
from pathlib import Path
from typing import Any, Final

from pipeline.features.attributes import Attribute, declare
from schemas.toml_files import InvalidToml, shown, suggestion, toml_tables

VARIABLE: Final = "FRAUD_PIPELINE_FEATURES_FILE"
MAX_FIELDS: Final = 100
MAX_MEANING: Final = 100
_NAME: Final = re.compile("[A-Za-z0-9_]{1,64}")
_ENTRIES: Final = ("type", "meaning")


class FeaturesError(ValueError):
    """A file of features that cannot be used; the text says where, and what it should be."""


def declare_features(file: Path) -> None:
    """Declare what a file does; raises `FeaturesError` for one that cannot be read, or used."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FeaturesError(f"{VARIABLE} names {file}, which cannot be read: {error.strerror}") from error
    declare(read_features_file(content, str(file)))


def read_features_file(content: bytes, name: str) -> list[Attribute]:
    """Return the attributes that the content of a file declares.

    Args:
        content: TOML, such as ``[fields.device_risk]`` with ``type = "number"`` and ``meaning``.
        name: Name of the file, for errors.

    Raises:
        FeaturesError: It declares nothing that can be used.
    """
    try:
        tables = toml_tables(content)
    except InvalidToml as error:
        raise FeaturesError(f"{name}: {error}") from error
    if unknown := next((key for key in tables if key != "fields"), None):
        raise FeaturesError(f"{name}: there is no {shown(unknown)}; only fields can be declared, as [fields.NAME]")
    fields = tables.get("fields")
    if not isinstance(fields, dict):
        raise FeaturesError(f"{name}: it declares no field; begin with [fields.NAME]")
    if len(fields) > MAX_FIELDS:
        raise FeaturesError(f"{name}: it declares {len(fields)} fields, and may declare {MAX_FIELDS}")
    text = content.decode()
    return [_attribute(field, table, _where(name, text, field)) for field, table in fields.items()]


def _attribute(field: str, table: Any, where: str) -> Attribute:
    if not _NAME.fullmatch(field):
        raise FeaturesError(f"{where}: a name has at most 64 ASCII letters, digits and _")
    if not isinstance(table, dict):
        raise FeaturesError(f"{where}: write a table, with {' and '.join(_ENTRIES)}")
    for key in table:
        if key not in _ENTRIES:
            raise FeaturesError(f"{where}: there is no {shown(key)}; {suggestion(key, _ENTRIES)}")
    if table.get("type") != "number":
        raise FeaturesError(f'{where}: write type = "number"; models read no other type')
    meaning = table.get("meaning")
    if not (isinstance(meaning, str) and meaning.strip() and len(meaning) <= MAX_MEANING and meaning.isprintable()):
        raise FeaturesError(f"{where}: give it a meaning of at most {MAX_MEANING} characters, which analysts read")
    return Attribute(field, meaning.strip())


def _where(name: str, text: str, field: str) -> str:
    """Return the place of a field: the file, its line if the header is found, and its name."""
    header = re.compile(rf"""^[ \t]*\[[ \t]*fields[ \t]*\.[ \t]*["']?{re.escape(field)}["']?[ \t]*\]""", re.MULTILINE)
    found = header.search(text)
    line = "" if found is None else f", line {1 + len(text[: found.start()].splitlines())}"
    return f"{name}{line}: [fields.{shown(field)}]"
