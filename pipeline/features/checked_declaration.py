"""The check of a declaration, and what it asks of kernels: built-in features, groups of windows, ratios, functions.

`pipeline.features.feature_set` derives columns and the tables of kernels.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from pipeline.expressions.trees import Condition, ValueKind, check_tree, fields_in, text_of
from pipeline.features.aggregates import AGGREGATES, ALIASES, AMOUNT_AGGREGATES, Aggregate, window_us
from pipeline.features.built_in import (
    COUNT,
    MONEY,
    NUMBER,
    SECONDS,
    SILENCE_FEATURES,
    Feature,
)
from pipeline.features.declaration import (
    BASES,
    BUILT_IN,
    Declaration,
    DeclarationError,
    DeclaredFeature,
    DeclaredField,
    resolved,
)
from schemas.fields import DECLARED_FIELDS, TEXT_COLUMNS
from schemas.toml_files import shown, suggestion

MOST_FIELDS: Final = 100
MOST_FEATURES: Final = 200
MOST_WINDOWS: Final = 8
MOST_INPUTS: Final = 16
"""Values that a transaction can leave in the windows of one entity, eight bytes each."""
MOST_CHARACTERS: Final = 100
MOST_COLUMNS: Final = 8
"""Columns that a function gets."""
FIELD_REASON: Final = "PRODUCER_ATTRIBUTES"
"""Reason that the producer's own numbers belong to."""
WINDOW_REASON: Final = "DECLARED_FEATURES"
"""Reason that declared windows belong to."""
CONTRACT_FIELDS: Final[dict[str, ValueKind]] = {
    **{field.name: ValueKind.TEXT for field in TEXT_COLUMNS if field.name != "transaction_id"},
    **dict.fromkeys(("amount", "hour", "weekday"), ValueKind.NUMBER),
}
"""Fields of the contract that features and filters can read; the identifier of a transaction is none."""
_NAME: Final = re.compile("[A-Za-z0-9_]{1,64}")
_LATER: Final = "windows per {} are not there yet: declare entity card or merchant"
Filter = Callable[[Any, Mapping[str, ValueKind]], Condition]
"""Reads a filter over fields of known kinds; raises ValueError with a sentence."""
_decode: Final = msgspec.json.Decoder(Declaration).decode


class Input(NamedTuple):
    """A value that each transaction has for windows: that of a field, or 1, where a filter holds; else none."""

    field: str
    """Empty for 1."""
    where: Condition | None
    kind: ValueKind
    """Kind of the field; a number where there is none."""

    @property
    def scale(self) -> float:
        """Number of steps of its values: cents, millionths, minutes of an hour; 1 for codes of texts."""
        return _SCALES.get(self.field, 1e6) if self.kind is ValueKind.NUMBER else 1.0

    @property
    def column(self) -> str:
        """Name of the feature by which it travels to the merchants' windows."""
        content = msgspec.json.encode([self.field, self.where])
        return f"input_{hashlib.sha256(content).hexdigest()[:8]}"

    def __str__(self) -> str:
        """Return a text of it, for people."""
        return " where ".join(filter(None, (self.field or "1", "" if self.where is None else text_of(self.where))))


_SCALES: Final = {"amount": 100.0, "hour": 60.0, "weekday": 1.0, "": 1.0}


class Group(NamedTuple):
    """Features of one aggregate over several windows of an entity."""

    aggregate: Aggregate
    input: Input | None
    """None: every event has its amount as the value."""
    windows_us: tuple[int, ...]
    """Ascending."""
    names: tuple[str, ...]


class Ratio(NamedTuple):
    """A feature that is the quotient of two others of its entity."""

    name: str
    inputs: tuple[str, str]


class FunctionFeature(NamedTuple):
    """A feature that a function of the deployment's own makes of numbers of the transaction."""

    name: str
    """That of the function; the feature is ``function_`` and this name."""
    inputs: tuple[str, ...]
    source: str
    """Digest of its source; empty where nobody has looked yet."""

    @property
    def feature(self) -> str:
        """Name of the feature."""
        return f"function_{self.name}"


class CheckedDeclaration(NamedTuple):
    """A declaration without an error, and what it asks for."""

    declaration: Declaration
    """With its filters as trees."""
    built_in: frozenset[str]
    """Names of the built-in features that it chooses, and of those that its filters read."""
    own: tuple[Feature, ...]
    """Features of fields, windows and ratios, in order."""
    groups: Mapping[str, tuple[Group, ...]]
    """Groups of windows, keyed by the entity."""
    ratios: Mapping[str, tuple[Ratio, ...]]
    """Ratios, likewise."""
    functions: tuple[FunctionFeature, ...]
    trained: frozenset[str]
    """Names of features that trainings take by default: of tables that say nothing else, the last one counts."""


def load_declaration(content: bytes) -> Declaration:
    """Return the declaration of a record; raises `DeclarationError` for content that is none, or not canonical."""
    declaration = decode_declaration(content)
    if declaration.content != content:
        raise DeclarationError(
            "", "", "a record holds a declaration as `fraud-pipeline features publish` writes it: publish its file so"
        )
    return declaration


def decode_declaration(content: bytes) -> Declaration:
    """Return the declaration that JSON holds, with all that it extends; raises `DeclarationError` if it is none."""
    try:
        return resolved(check_declaration(_decode(content), check_tree).declaration)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DeclarationError("", "", f"it is no declaration of features: {error}") from error


def check_declaration(declaration: Declaration, read_filter: Filter) -> CheckedDeclaration:
    """Return a declaration that can be used, with its filters read.

    Args:
        declaration: Of a file or a record.
        read_filter: Reads its filters: a parser of texts, or a check of trees.

    Raises:
        DeclarationError: It cannot be used.
    """
    return _Check(declaration, read_filter).checked()


class _Check:
    """The check of one declaration."""

    def __init__(self, declaration: Declaration, read_filter: Filter) -> None:
        self._declaration, self._read_filter = declaration, read_filter
        self._kinds = dict(CONTRACT_FIELDS)
        self._built_in: set[str] = set()
        self._own: dict[str, Feature] = {}
        self._groups: dict[str, list[Group]] = {"card": [], "merchant": []}
        self._ratios: dict[str, list[Ratio]] = {"card": [], "merchant": []}
        self._functions: list[FunctionFeature] = []
        self._chosen: set[str] = set()
        """Features of the table that is looked at."""
        self._trained: set[str] = set()
        self._key: tuple[str, str | int] = ("", "")

    def checked(self) -> CheckedDeclaration:
        declared = self._declaration
        if declared.extends not in BASES:
            raise self._error(f"extends cannot be {shown(declared.extends)}; {suggestion(declared.extends, BASES)}")
        if len(declared.fields) > MOST_FIELDS:
            raise self._error(f"it declares {len(declared.fields)} fields, and may declare {MOST_FIELDS}")
        for name, field in declared.fields.items():
            self._key, self._chosen = ("fields", name), set()
            self._field(name, field)
            self._trained |= self._chosen
        tables: list[DeclaredFeature] = list(declared.features)
        # Filters of merchants read features of cards.
        for number in sorted(range(len(tables)), key=lambda number: tables[number].entity == "merchant"):
            self._key = ("features", number)
            self._chosen = set()
            tables[number] = self._feature(tables[number])
            self._trained = self._trained | self._chosen if tables[number].train else self._trained - self._chosen
        self._key = ("", "")
        for entity, groups in self._groups.items():
            if len(found := inputs_of(groups)) > MOST_INPUTS:
                raise self._error(
                    f"windows of a {entity} read {len(found)} fields under filters of their own, and may read "
                    f"{MOST_INPUTS}"
                )
        return CheckedDeclaration(
            msgspec.structs.replace(declared, features=tuple(tables)),
            frozenset(self._built_in),
            tuple(self._own.values()),
            {entity: tuple(groups) for entity, groups in self._groups.items()},
            {entity: tuple(ratios) for entity, ratios in self._ratios.items()},
            tuple(self._functions),
            frozenset(self._trained),
        )

    def _error(self, text: str) -> DeclarationError:
        return DeclarationError(*self._key, text)

    def _field(self, name: str, field: DeclaredField) -> None:
        if not _NAME.fullmatch(name):
            raise self._error("a name has at most 64 ASCII letters, digits and _")
        if name in self._kinds or name in BUILT_IN or any(name == given.name for given in DECLARED_FIELDS):
            raise self._error("a field of the contract or a feature has this name: give yours another one")
        if not _is_meaning(field.meaning):
            raise self._error(f"give it a meaning of at most {MOST_CHARACTERS} characters, which analysts read")
        if field.personal and field.type == "number":
            raise self._error("a number cannot be personal: features show it; send it as text")
        self._kinds[name] = ValueKind(field.type)
        if field.type == "number":
            self._add(
                Feature(
                    "transaction", f"attribute_{name}", NUMBER, field.meaning.strip(),
                    f"`attributes.{name}`; NaN if it is absent, null or text", FIELD_REASON,
                )
            )  # fmt: skip

    def _feature(self, table: DeclaredFeature) -> DeclaredFeature:
        if table.entity not in ("transaction", "card", "merchant"):
            if table.entity in ("device", "ip", "account", *self._kinds):
                raise self._error(_LATER.format(shown(table.entity)))
            found = suggestion(table.entity, ("card", "merchant", "transaction"))
            raise self._error(f"entity cannot be {shown(table.entity)}; {found}")
        if table.name and not _NAME.fullmatch(table.name):
            raise self._error("a name has at most 64 ASCII letters, digits and _")
        if table.meaning and not _is_meaning(table.meaning):
            raise self._error(f"write a meaning of at most {MOST_CHARACTERS} characters")
        if table.aggregate == "function":
            return self._function(table)
        if table.source:
            raise self._error("only a function has a source")
        if table.aggregate == "ratio":
            return self._ratio(table)
        if table.inputs:
            raise self._error("only a ratio or a function has inputs")
        if len(set(table.windows)) < len(table.windows):
            raise self._error("it names a window twice")
        built_in = self._built_in_windows(table)
        others = tuple(window for window in table.windows if window not in built_in)
        if built_in and not others:
            if table.meaning:
                raise self._error("a built-in feature has a meaning of its own: leave meaning out")
        else:
            aggregate, where = self._aggregate(table), self._where(table)
            self._window(msgspec.structs.replace(table, windows=others), aggregate, where)
            table = msgspec.structs.replace(table, where=None if where is None else where.data())
        self._built_in.update(built_in.values())
        self._chosen.update(built_in.values())
        return table

    def _built_in_windows(self, table: DeclaredFeature) -> dict[str, str]:
        """Return the built-in features of a table by their windows, an empty one for a feature without any."""
        if table.where is not None or table.name:
            return {}
        if table.entity == "transaction":
            known = table.aggregate == "value" and table.field in BUILT_IN and not table.windows
            return {"": table.field} if known else {}
        if table.field and not (table.field == "amount" and table.aggregate in AMOUNT_AGGREGATES):
            return {}
        name = f"{table.entity}_{ALIASES.get(table.aggregate, table.aggregate)}"
        # Of silence, a week is the age that has no suffix.
        week = {"7d": name} if any(name in pair for pair in SILENCE_FEATURES.values()) else {}
        names = {window: week.get(window, f"{name}_{window}") for window in table.windows} or {"": name}
        return {window: name for window, name in names.items() if name in BUILT_IN}

    def _aggregate(self, table: DeclaredFeature) -> Aggregate:
        if table.entity == "transaction":
            raise self._error('features of a transaction have aggregate "value" and field amount, hour or weekday')
        if (found := AGGREGATES.get(table.aggregate)) is not None:
            return found
        prefix = f"{table.entity}_{ALIASES.get(table.aggregate, table.aggregate)}"
        named = sorted(name for name in BUILT_IN if name == prefix or name.startswith(f"{prefix}_"))
        if named and table.where is None and not table.field:
            raise self._error(f"there is only {', '.join(named)} of {shown(table.aggregate)}: choose its windows")
        if named:
            raise self._error(f"{shown(table.aggregate)} has neither a field nor a filter")
        known = (*AGGREGATES, "ratio", *ALIASES)
        raise self._error(
            f"there is no aggregate {shown(table.aggregate)} of a {table.entity}; {suggestion(table.aggregate, known)}"
        )

    def _where(self, table: DeclaredFeature) -> Condition | None:
        if table.where is None:
            return None
        kinds = dict(self._kinds)
        if table.entity == "merchant":
            kinds |= {name: ValueKind.NUMBER for name in BUILT_IN if name.startswith("card_")}
            kinds |= {name: ValueKind.NUMBER for name in self._own if name.startswith("card_")}
        try:
            tree = self._read_filter(table.where, kinds)
        except ValueError as error:
            raise self._error(f"where: {error}") from error
        # What a filter reads is computed.
        self._built_in.update(name for name in fields_in(tree) if name in BUILT_IN)
        return tree

    def _window(self, table: DeclaredFeature, aggregate: Aggregate, where: Condition | None) -> None:
        field = table.field or aggregate.field
        if field and field not in self._kinds:
            found = suggestion(field, tuple(self._kinds))
            raise self._error(f"there is no field {shown(field)}; {found}, or declare it as [fields.NAME]")
        kind = self._kinds.get(field, ValueKind.NUMBER)
        if aggregate.kind is not None and not field:
            raise self._error(f'{aggregate.name} needs a field, such as field = "country"')
        if aggregate.kind is not None and kind is not aggregate.kind:
            noun = "a text" if aggregate.kind is ValueKind.TEXT else "a number"
            raise self._error(f"{aggregate.name} is of {noun}, and {field} is none")
        if aggregate.name in ("share", "usual_hour") and table.field:
            raise self._error(f"{aggregate.name} has no field")
        if aggregate.name == "share" and where is None:
            raise self._error("share needs where: it is the share of those for which that holds")
        if not table.windows:
            raise self._error('it needs windows, such as windows = ["1d", "7d"]')
        if len(table.windows) > MOST_WINDOWS:
            raise self._error(f"it has {len(table.windows)} windows, and may have {MOST_WINDOWS}")
        spans = {}
        for window in table.windows:
            try:
                spans[window] = window_us(window)
            except ValueError as error:
                raise self._error(str(error)) from error
        if len(set(spans.values())) < len(table.windows):
            raise self._error("it names a window twice")
        given = None if where is None and field in ("", "amount") else Input(field, where, kind)
        windows = sorted(spans, key=spans.__getitem__)
        label = table.name or "_".join(filter(None, (aggregate.name, table.field)))
        earlier = {
            name: (group.aggregate, group.input, us)
            for group in self._groups[table.entity]
            for name, us in zip(group.names, group.windows_us, strict=True)
        }
        added = list[str]()
        condition = "" if where is None else f", where {text_of(where)}"
        for window in windows:
            words = aggregate.meaning.format(entity=table.entity, field=field or "amount")
            words = f"{table.meaning.strip() or words} in {spoken(window)}{'' if table.meaning.strip() else condition}"
            feature = Feature(
                table.entity, label, _unit(aggregate, field), words,
                f"{aggregate.definition.format(field=field)}{condition}", WINDOW_REASON, window,
            )  # fmt: skip
            if earlier.get(feature.name) == (aggregate, given, spans[window]):
                # As of built-in features, the last table says whether it is trained on.
                self._chosen.add(feature.name)
                continue
            self._add(feature)
            added.append(window)
        if added:
            names = tuple(f"{table.entity}_{label}_{window}" for window in added)
            self._groups[table.entity].append(Group(aggregate, given, tuple(spans[window] for window in added), names))

    def _ratio(self, table: DeclaredFeature) -> DeclaredFeature:
        if table.entity == "transaction" or len(table.inputs) != 2 or not table.name:
            raise self._error(
                'a ratio has an entity card or merchant, a name, and inputs = ["...", "..."], two of its features'
            )
        if table.windows or table.field or table.where is not None:
            raise self._error("a ratio has no windows, field or filter of its own: its two features have")
        first, second = table.inputs
        for name in table.inputs:
            known = [known for known in (*BUILT_IN, *self._own) if known.startswith(f"{table.entity}_")]
            if name not in known:
                raise self._error(
                    f"there is no feature {shown(name)} of a {table.entity} above it; {suggestion(name, known)}"
                )
            if name in BUILT_IN:
                self._built_in.add(name)
        meaning = table.meaning.strip() or f"{first}, as a multiple of {second}"
        name = f"{table.entity}_{table.name}"
        self._add(
            Feature(
                table.entity, table.name, NUMBER, meaning, f"`{first}` / `{second}`; NaN if that is not above 0",
                WINDOW_REASON,
            )
        )  # fmt: skip
        self._ratios[table.entity].append(Ratio(name, (first, second)))
        return table

    def _function(self, table: DeclaredFeature) -> DeclaredFeature:
        if table.entity != "transaction" or not table.name or not 0 < len(table.inputs) <= MOST_COLUMNS:
            raise self._error(
                f'a function has entity transaction, its name, and inputs = ["..."], 1 to {MOST_COLUMNS} numbers'
            )
        if table.windows or table.field or table.where is not None:
            raise self._error("a function has no windows, field or filter")
        numbers = [name for name, kind in self._kinds.items() if kind is ValueKind.NUMBER]
        for name in table.inputs:
            if name not in numbers:
                raise self._error(f"there is no number {shown(name)}; {suggestion(name, numbers)}")
        function = FunctionFeature(table.name, table.inputs, table.source)
        meaning = table.meaning.strip() or f"{table.name} of {', '.join(table.inputs)}"
        definition = f"`{table.name}({', '.join(table.inputs)})`, a function of the deployment's own"
        self._add(Feature("transaction", function.feature, NUMBER, meaning, definition, WINDOW_REASON))
        self._functions.append(function)
        return table

    def _add(self, feature: Feature) -> None:
        if feature.name in BUILT_IN or feature.name in self._own or feature.name in self._declaration.fields:
            raise self._error(
                f'another feature is called {feature.name}: give this one a name of its own, as name = "..."'
            )
        if len(self._own) >= MOST_FEATURES:
            raise self._error(f"more than {MOST_FEATURES} features are declared")
        self._own[feature.name] = feature
        self._chosen.add(feature.name)


def spoken(window: str) -> str:
    """Return a window in words.

    >>> spoken("90m"), spoken("1d")
    ('the last 90 minutes', 'the last day')
    """
    number, unit = int(window[:-1]), {"m": "minute", "h": "hour", "d": "day"}[window[-1]]
    return f"the last {unit}" if number == 1 else f"the last {number} {unit}s"


def _unit(aggregate: Aggregate, field: str) -> str:
    if aggregate.unit in (COUNT, SECONDS):
        return aggregate.unit
    return MONEY if field == "amount" and aggregate.name in AMOUNT_AGGREGATES else NUMBER


def _is_meaning(text: str) -> bool:
    return bool(text.strip()) and len(text) <= MOST_CHARACTERS and text.isprintable()


def inputs_of(groups: Sequence[Group]) -> tuple[Input, ...]:
    """Return the values that the windows of an entity hold of each event, in order, each once."""
    return tuple(dict.fromkeys(group.input for group in groups if group.input is not None))
