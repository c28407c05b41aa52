"""A declaration of fields and features, as a file or a record holds it.

The settings' reader makes one of TOML (`pipeline.settings.features_file`); `pipeline.features.checked_declaration` says
whether it can be used.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal, TypeVar

import msgspec

from pipeline.features.built_in import BUILT_IN_CARD, BUILT_IN_MERCHANT, Feature
from schemas.toml_files import shown, suggestion

T = TypeVar("T", bound=msgspec.Struct)
DEFAULT: Final = "default"
BASES: Final = (DEFAULT, "all", "none")
"""Sets that a declaration can extend: the packaged one, all built-in features, or nothing."""
DIGEST_DIGITS: Final = 16
_FIELD_TYPES: Final = ("number", "text")
BUILT_IN: Final = {feature.name: feature for feature in (*BUILT_IN_CARD, *BUILT_IN_MERCHANT)}
_MISSING: Final = re.compile("missing required field `(.*)`")
_ARTICLES: Final = {"meaning": "a meaning", "type": "a type", "entity": "an entity", "aggregate": "an aggregate"}
_KEYS: Final = ("extends", "fields", "features")


class DeclaredField(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A number or text in the ``attributes`` of a transaction."""

    type: Literal["number", "text"]
    meaning: str
    """In a few words for people."""
    personal: bool = False
    """True if it may say who somebody is."""


class DeclaredFeature(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A feature for each of its windows."""

    entity: str
    """``transaction``, ``card`` or ``merchant``."""
    aggregate: str
    field: str = ""
    windows: tuple[str, ...] = ()
    where: Any = None
    """A filter: a text in a file, JSON data of a tree in a record."""
    inputs: tuple[str, ...] = ()
    """Names of the two features that a ratio is of, or of the numbers that a function gets."""
    source: str = ""
    """Digest of a function's source, in a record."""
    name: str = ""
    """In place of aggregate and field in the features' names."""
    meaning: str = ""
    train: bool = True
    """False: computed and served, for rules and audits; a training takes it only where it is named."""


class Declaration(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The fields and features of a deployment, beyond what it extends."""

    format: Literal[1] = 1
    extends: str = DEFAULT
    fields: dict[str, DeclaredField] = {}
    features: tuple[DeclaredFeature, ...] = ()

    @property
    def content(self) -> bytes:
        """Canonical JSON: declarations that say the same have the same bytes."""
        return msgspec.json.encode({"format": self.format} | msgspec.to_builtins(self), order="sorted")

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for all that it says."""
        return hashlib.sha256(self.content).hexdigest()[:DIGEST_DIGITS]

    @property
    def version(self) -> str:
        """The digest: a declaration gives itself no other version."""
        return self.digest


_decode_declaration: Final = msgspec.json.Decoder(Declaration).decode


class DeclarationError(ValueError):
    """A declaration that cannot be used: the table at fault, and why.

    Args:
        table: ``fields`` or ``features``, or empty.
        key: Name of the field, or number of the feature from 0.
        text: The reason, in a sentence.
    """

    def __init__(self, table: str, key: str | int, text: str) -> None:
        super().__init__(text)
        self.table, self.key = table, key


def declaration_of(tables: Mapping[str, Any]) -> Declaration:
    """Return the declaration of a file's tables, not checked; raises `DeclarationError` for a wrong key or type."""
    for key in tables:
        if key == "entities":
            raise DeclarationError("", "", "entities of your own are not there yet: declare entity card or merchant")
        if key not in _KEYS:
            raise DeclarationError("", "", f"there is no {shown(key)}; {suggestion(key, _KEYS)}")
    fields, features = tables.get("fields", {}), tables.get("features", [])
    if not isinstance(fields, dict):
        raise DeclarationError("", "", "write each field as a table, [fields.NAME]")
    if not isinstance(features, list):
        raise DeclarationError("", "", "write each feature as a table, [[features]]")
    extends = tables.get("extends", DEFAULT)
    if not isinstance(extends, str):
        raise DeclarationError("", "", f"extends is a text: {', '.join(BASES)}")
    return Declaration(
        extends=extends,
        fields={name: _table("fields", name, table, DeclaredField) for name, table in fields.items()},
        features=tuple(_table("features", k, table, DeclaredFeature) for k, table in enumerate(features)),
    )


@cache
def packaged_declaration() -> Declaration:
    """Return the default set: ``data/features.json``, which holds ``data/features.toml`` with its filters as trees."""
    return _decode_declaration(files("pipeline").joinpath("data/features.json").read_bytes())


def resolved(declaration: Declaration) -> Declaration:
    """Return a declaration that names all that it extends, its fields by name: it means the same to every release."""
    declaration = msgspec.structs.replace(declaration, fields=dict(sorted(declaration.fields.items())))
    if declaration.extends not in (DEFAULT, "all"):
        return declaration
    base = packaged_declaration().features
    if declaration.extends == "all":
        # Of two tables of a feature the last says whether it is trained on.
        base = (*map(table_of, BUILT_IN.values()), *base)
    return msgspec.structs.replace(declaration, extends="none", features=(*base, *declaration.features))


def table_of(feature: Feature) -> DeclaredFeature:
    """Return the table that declares a built-in feature, and leaves it out of trainings."""
    if feature.entity == "transaction":
        return DeclaredFeature(feature.entity, "value", feature.aggregate, train=False)
    windows = (feature.window,) if feature.window else ()
    return DeclaredFeature(feature.entity, feature.aggregate, windows=windows, train=False)


def _table(where: str, key: str | int, table: Any, kind: type[T]) -> T:
    if not isinstance(table, dict):
        raise DeclarationError(where, key, "write a table")
    names = [field.name for field in msgspec.structs.fields(kind)]
    for name in table:
        if name not in names:
            raise DeclarationError(where, key, f"there is no {shown(name)}; {suggestion(name, names)}")
    if not isinstance(table.get("where", ""), str):
        raise DeclarationError(where, key, "where is a text, such as \"channel = 'web'\"")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        if missing := _MISSING.search(str(error)):
            raise DeclarationError(where, key, f"it needs {_ARTICLES.get(missing[1], missing[1])}") from error
        if kind is DeclaredField and table.get("type", "number") not in _FIELD_TYPES:
            raise DeclarationError(where, key, f"type is {' or '.join(_FIELD_TYPES)}") from error
        what, _, path = str(error).partition(" - at `$.")
        name = path.removesuffix("`")
        raise DeclarationError(where, key, f"{name}: {what[0].lower()}{what[1:200]}") from error
