"""Files of rules: a header of comments, and one condition."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import msgspec

from pipeline.decision.rules import CONTROL, FIELDS, FILE_SUFFIX, Action, Rule, RuleSet, Severity
from pipeline.expressions.trees import Condition, ExpressionError, ValueKind, check_tree, fields_in
from pipeline.features.active import active_declaration
from pipeline.features.aggregates import AGGREGATES
from pipeline.features.checked_declaration import check_declaration
from pipeline.features.declaration import (
    BUILT_IN,
    Declaration,
    DeclarationError,
    DeclaredFeature,
    table_of,
)
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.toml_files import MAX_BYTES, shown, suggestion

CAPS: Final[dict[str, type]] = {"max-alerts-per-hour": int, "max-hit-rate": float}
"""Lines of a header that limit a rule, with the kinds of their numbers; `Rule` has them with underscores."""
_KEYS: Final = ("code", "owner", "reason", "severity", "action", *CAPS)
_CHOICES: Final = {"severity": get_args(Severity), "action": get_args(Action)}
_DEFAULTS: Final = {"severity": "medium", "action": "alert"}
_UNDECLARED: Final = {name: ValueKind.NUMBER for name in BUILT_IN if name not in FIELDS}
_WINDOW: Final = re.compile(r"\b(card|merchant)_(\w+)_(\d+[mhd])\b", re.ASCII)


class RuleFileError(ValueError):
    """A file of a rule that cannot be used; the text says where, and what to change."""


class RuleFile(NamedTuple):
    """A rule as a file has it."""

    rule: Rule
    """A draft."""
    missing: tuple[str, ...]
    """Features that it reads, and that can be declared, but nobody has."""


def read_directory(directory: Path) -> list[RuleFile]:
    """Return the rules of a directory's files, by their names.

    Raises:
        RuleFileError: There is none, one cannot be used, or two have one code.
    """
    try:
        # Names that begin with a dot are what editors leave.
        paths = sorted(
            path for path in directory.iterdir() if path.suffix.lower() == FILE_SUFFIX and path.name[0] != "."
        )
    except OSError as error:
        raise RuleFileError(f"{directory} cannot be read: {error.strerror}") from error
    if not paths:
        raise RuleFileError(f"{directory} has no file *{FILE_SUFFIX}; write a rule into one")
    found: dict[str, Path] = {}
    files = []
    for path in paths:
        files.append(read_rule(path))
        if (code := files[-1].rule.code) in found:
            raise RuleFileError(f"{path}: {found[code]} has the code {shown(code)} too; give one of them another")
        found[code] = path
    return files


def read_rule(path: Path) -> RuleFile:
    """Return the rule of a file; raises `RuleFileError` where it cannot be used."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RuleFileError(f"{path} has more than {MAX_BYTES:,} bytes; a file holds one rule")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise RuleFileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RuleFileError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    header, start = _header(path, text)
    try:
        condition = _parsed(text[start:])
    except ExpressionError as error:
        before = text[: start + (error.position or 0)]
        line, character = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise RuleFileError(f"{path}, line {line}, character {character}: {error}") from error
    found = RuleFile(
        Rule(**header, state="draft", tree=condition.data()), tuple(sorted(fields_in(condition) - {*FIELDS}))
    )
    try:
        # A set cannot read what is missing.
        RuleSet(() if found.missing else (found.rule,))
    except ModelError as error:
        raise RuleFileError(f"{path}: {error}") from error
    return found


def usable_rules(files: Sequence[RuleFile], settings: Settings) -> list[Rule]:
    """Return the rules of files, with the settings' caps; raises `RuleFileError` for one that cannot be used."""
    if missing := sorted({name for file in files for name in file.missing}):
        raise RuleFileError(f"{', '.join(missing)} must be declared first: see `fraud-pipeline rules check`")
    caps = settings.rule_max_alerts_per_hour, settings.rule_max_hit_rate
    return [
        msgspec.structs.replace(
            rule, max_alerts_per_hour=rule.max_alerts_per_hour or caps[0], max_hit_rate=rule.max_hit_rate or caps[1]
        )
        for rule in (file.rule for file in files)
    ]


def missing_lines(names: Iterable[str]) -> Iterator[str]:
    """Yield the lines of ``features.toml`` that declare features which a file lacks."""
    for table in filter(None, map(_table_of, names)):
        yield "[[features]]"
        yield f'entity = "{table.entity}"'
        yield f'aggregate = "{table.aggregate}"'
        yield from [f'field = "{table.field}"'] if table.field else []
        yield from [f'windows = ["{table.windows[0]}"]'] if table.windows else []
        yield "train = false"


def _parsed(text: str) -> Condition:
    # The parser is loaded where a rule is read only: a worker reads trees.
    from pipeline.expressions.parse import parse_expression

    windows = {found[0] for found in _WINDOW.finditer(text)} - {*FIELDS}
    fields = FIELDS | _UNDECLARED | dict.fromkeys(filter(_table_of, windows), ValueKind.NUMBER)
    return parse_expression(text, fields, lists=True)


@lru_cache
def _table_of(name: str) -> DeclaredFeature | None:
    """Return the table that declares a feature of this name; None where there is none, or not for a name alone."""
    if name in BUILT_IN:
        return table_of(BUILT_IN[name])
    if (found := _WINDOW.fullmatch(name)) is None:
        return None
    entity, label, window = found.groups()
    for aggregate in AGGREGATES:
        if f"{label}_".startswith(f"{aggregate}_"):
            table = DeclaredFeature(
                entity, aggregate, field=label[len(aggregate) + 1 :], windows=(window,), train=False
            )
            declaration = Declaration(extends="none", fields=active_declaration().fields, features=(table,))
            try:
                if name in {feature.name for feature in check_declaration(declaration, check_tree).own}:
                    return table
            except DeclarationError:
                continue
    return None


def _header(path: Path, text: str) -> tuple[dict[str, Any], int]:
    """Return what the header says, and where the condition begins."""
    found: dict[str, Any] = {}
    at = 0
    for number, read in enumerate(text.split("\n"), 1):
        line = read.strip()
        if line and not line.startswith("--"):
            break
        at = min(at + len(read) + 1, len(text))
        if not line:
            continue
        key, colon, value = (part.strip() for part in line[2:].partition(":"))
        where = f"{path}, line {number}"
        if not colon:
            raise RuleFileError(f"{where}: write -- and one of {', '.join(_KEYS)}, a colon and its text")
        if key not in _KEYS:
            raise RuleFileError(f"{where}: there is no {shown(key)}; {suggestion(key, _KEYS)}")
        if key.replace("-", "_") in found or not value:
            raise RuleFileError(f"{where}: give {key} once, with a text")
        if CONTROL.search(value):
            raise RuleFileError(f"{where}: {key} has a control character; write it on one line")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise RuleFileError(f"{where}: {key} cannot be {shown(value)}; {suggestion(value, _CHOICES[key])}")
        if key in CAPS:
            key, value = key.replace("-", "_"), _cap(where, key, value)
        found[key] = value
    if lacks := [key for key in _KEYS if key not in found and key not in (*_DEFAULTS, *CAPS)]:
        raise RuleFileError(f"{path}: the header lacks {', '.join(lacks)}; write -- {lacks[0]}: and its text above")
    return {**_DEFAULTS, **found}, at


def _cap(where: str, key: str, value: str) -> Any:
    try:
        number = CAPS[key](value)
        if 0 < number <= (1 if CAPS[key] is float else 1e9):
            return number
    except ValueError:
        pass
    what = "a whole number above 0" if CAPS[key] is int else "a number above 0 and up to 1"
    raise RuleFileError(f"{where}: {key} is {what}, not {shown(value)}")
