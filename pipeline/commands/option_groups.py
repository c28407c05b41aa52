"""Groups of options that belong together, some derived from the fields of what they make."""

import functools
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import click
import msgspec

from pipeline.commands.option_types import Duration, FiniteRange, Moment
from schemas.limits import limits_of
from schemas.times import SECONDS_PER_DAY

Decorator = Callable[[Any], Any]
Makers = Mapping[type, Callable[..., Any]]
_UNITS: Final = {"seconds": 1, "days": SECONDS_PER_DAY}


def option_group(*options: Decorator) -> Decorator:
    """Return a decorator that adds ``options`` to a command, in their order.

    Args:
        options: Decorators, such as ``click.option`` and ``click.argument`` return them.
    """

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class _Field(NamedTuple):
    """A declared field, or a group of declared fields."""

    name: str
    declared: msgspec.Meta | None
    """None for a group."""
    kind: Any
    default: Any

    @property
    def extra(self) -> dict[str, Any]:
        """The part of the declaration that concerns the option alone."""
        return (self.declared.extra if self.declared is not None else None) or {}

    @property
    def names(self) -> list[str]:
        """Names of the option, then of the command's parameter."""
        names: list[str] = self.extra.get("option", f"--{self.name.replace('_', '-')}").split()
        return [*names, names[0][2:].replace("-", "_")] if names[-1].startswith("-") else names


def declared_options(
    argument: str, kind: type, makers: Makers | None = None, without: Collection[str] = ()
) -> Decorator:
    """Return a decorator that adds an option for each declared field of a class, and passes on what they make.

    A field is declared by a description in the `msgspec.Meta` of its type. Its ``extra`` may hold

    - ``option``: names of the option, and of the parameter, as `click.option` has them. Default: the field's name;
    - ``metavar``, ``envvar`` and ``choices``, as there;
    - ``unit``: ``days`` for a field in days whose option is a duration. A field in ``_s`` has one in any case;
    - ``directory``: True for a path that is one; any other is a file that exists;
    - ``value``: the only value of the option, for a field that is a bool.

    A field whose type has declared fields itself stands for these.

    Args:
        argument: Name of the command's parameter for what is made; its ValueError is reported to the user.
        kind: A dataclass, a Struct, or another class whose parameters are declared.
        makers: What makes a group of its fields' values, by the group's class. Default: the class itself.
        without: Fields that are no options.
    """

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def with_made(**values: Any) -> Any:
            try:
                values[argument] = _made(kind, values, makers or {}, without)
            except ValueError as error:
                raise click.ClickException(str(error)) from error
            return command(**values)

        return option_group(*_options(kind, without))(with_made)

    return decorate


def _fields(kind: Any, without: Collection[str] = ()) -> Iterator[_Field]:
    hints = get_type_hints(kind if _grouped(kind) else kind.__init__, include_extras=True)
    for name, parameter in inspect.signature(kind).parameters.items():
        declared, bare = limits_of(hints[name]), _bare(hints[name])
        described = declared is not None and declared.description is not None
        if name not in without and (described or (_grouped(bare) and any(_fields(bare, without)))):
            yield _Field(name, declared if described else None, bare, parameter.default)


def _grouped(kind: Any) -> bool:
    return any(hasattr(kind, name) for name in ("__dataclass_fields__", "__struct_fields__", "_fields"))


def _bare(hint: Any) -> Any:
    """Return a type without its declaration; of several, the first."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_args(hint)[0] if get_origin(hint) in (Union, types.UnionType) else hint


def _options(kind: Any, without: Collection[str] = ()) -> Iterator[Decorator]:
    for field in _fields(kind, without):
        if field.declared is None:
            yield from _options(field.kind, without)
        else:
            yield _option(field, field.declared)


def _option(field: _Field, declared: msgspec.Meta) -> Decorator:
    kind, default, (*options, parameter) = field.kind, field.default, field.names
    more: dict[str, Any] = {}
    if multiple := get_origin(kind) in (Sequence, Iterable, Mapping):
        kind = get_args(kind)[0]
    type_ = _type(field, kind, declared)
    if type_ is bool:
        more = {"is_flag": True, "default": default, "show_default": default}
        options = options if default is False else [f"{options[0]}/--no-{options[0][2:]}"]
    elif default is not False and default not in (None, (), inspect.Parameter.empty):
        shown = default.value if isinstance(default, Enum) else default
        more = {"default": type_.text(shown) if isinstance(type_, Duration) else shown, "show_default": True}
    more |= {"multiple": multiple, "metavar": field.extra.get("metavar"), "envvar": field.extra.get("envvar")}
    return click.option(*options, parameter, type=type_, help=declared.description, **more)


def _type(field: _Field, kind: Any, declared: msgspec.Meta) -> Any:
    if field.name.endswith("_s") or "unit" in field.extra:
        return Duration(_UNITS[field.extra.get("unit", "seconds")])
    if kind is bool:
        return click.Choice([field.extra["value"]]) if "value" in field.extra else bool
    if kind is Path:
        directory = field.extra.get("directory", False)
        return click.Path(exists=not directory, dir_okay=directory, file_okay=not directory, path_type=Path)
    if kind is datetime:
        return Moment()
    if get_origin(kind) is Literal or "choices" in field.extra:
        return click.Choice(field.extra.get("choices") or get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return click.Choice([item.value for item in kind])
    if kind not in (int, float):
        return str
    least = declared.gt if declared.ge is None else declared.ge
    most = declared.lt if declared.le is None else declared.le
    bounds: dict[str, Any] = {"min": least, "min_open": declared.ge is None}
    bounds |= {"max": most, "max_open": declared.le is None}
    return (click.IntRange if kind is int else FiniteRange)(**bounds)


def _made(kind: Any, values: dict[str, Any], makers: Makers, without: Collection[str] = ()) -> Any:
    """Make a group, and take the values of its options out of ``values``."""
    given = {}
    for field in _fields(kind, without):
        if field.declared is None:
            given[field.name] = _made(field.kind, values, makers, without)
        else:
            value = values.pop(field.names[-1])
            given[field.name] = value is not None if "value" in field.extra else value
    return makers.get(kind, kind)(**given)
