"""Files of rules: a header of comments, and one condition."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from pipeline.decision.rules import FIELDS, Action, Rule, Severity
from pipeline.expressions.trees import Condition, ExpressionError, ValueKind, fields_in
from pipeline.features.declaration import BUILT_IN, table_of
from schemas.toml_files import MAX_BYTES, shown, suggestion

SUFFIX: Final = ".sql"
_KEYS: Final = ("code", "owner", "reason", "severity", "action")
_CHOICES: Final = {"severity": get_args(Severity), "action": get_args(Action)}
_DEFAULTS: Final = {"severity": "medium", "action": "alert"}
_UNDECLARED: Final = {name: ValueKind.NUMBER for name in BUILT_IN if name not in FIELDS}


class RuleFileError(ValueError):
    """A file of a rule that cannot be used; the text says where, and what to change."""


class RuleFile(NamedTuple):
    """A rule as a file has it."""

    rule: Rule
    """A draft."""
    missing: tuple[str, ...]
    """Built-in features that it reads, and that nobody has declared."""


def read_directory(directory: Path) -> list[RuleFile]:
    """Return the rules of a directory's files, by their names.

    Raises:
        RuleFileError: There is none, one cannot be used, or two have one code.
    """
    paths = sorted(directory.glob(f"*{SUFFIX}"))
    if not paths:
        raise RuleFileError(f"{directory} has no file *{SUFFIX}")
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
        content = path.read_bytes()
        if len(content) > MAX_BYTES:
            raise RuleFileError(f"{path} has {len(content):,} bytes, and may have {MAX_BYTES:,}")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise RuleFileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RuleFileError(f"{path}: byte {error.start} is not UTF-8") from error
    header, start = _header(path, text)
    try:
        condition = _parsed(text[start:])
    except ExpressionError as error:
        before = text[: start + (error.position or 0)]
        line, character = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise RuleFileError(f"{path}, line {line}, character {character}: {error}") from error
    missing = tuple(sorted(fields_in(condition) & _UNDECLARED.keys()))
    return RuleFile(Rule(**header, state="draft", expression=text[start:].strip(), tree=condition.data()), missing)


def missing_lines(names: Iterable[str]) -> Iterator[str]:
    """Yield the lines of ``features.toml`` that declare built-in features."""
    for name in names:
        table = table_of(BUILT_IN[name])
        yield "[[features]]"
        yield f'entity = "{table.entity}"'
        yield f'aggregate = "{table.aggregate}"'
        yield from [f'field = "{table.field}"'] if table.field else []
        yield from [f'windows = ["{table.windows[0]}"]'] if table.windows else []
        yield "train = false"


def _parsed(text: str) -> Condition:
    # The parser is loaded where a rule is read only: a worker reads trees.
    from pipeline.expressions.parse import parse_expression

    return parse_expression(text, FIELDS | _UNDECLARED, lists=True)


def _header(path: Path, text: str) -> tuple[dict[str, Any], int]:
    """Return what the header says, and where the condition begins."""
    found: dict[str, str] = {}
    at = 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.strip() and not line.startswith("--"):
            break
        at += len(line)
        if not line.strip():
            continue
        key, colon, value = (part.strip() for part in line[2:].partition(":"))
        where = f"{path}, line {number}"
        if not colon:
            raise RuleFileError(f"{where}: write -- and one of {', '.join(_KEYS)}, a colon and its text")
        if key not in _KEYS:
            raise RuleFileError(f"{where}: there is no {shown(key)}; {suggestion(key, _KEYS)}")
        if key in found or not value:
            raise RuleFileError(f"{where}: give {key} once, with a text")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise RuleFileError(f"{where}: {key} cannot be {shown(value)}; {suggestion(value, _CHOICES[key])}")
        found[key] = value
    if lacks := [key for key in _KEYS if key not in found and key not in _DEFAULTS]:
        raise RuleFileError(f"{path}: the header lacks {', '.join(lacks)}; write -- {lacks[0]}: and its text above")
    return {**_DEFAULTS, **found}, at
