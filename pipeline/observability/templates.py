"""Pages from Jinja templates, which lie beside the module that fills them."""

from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@cache
def template(
    package: str, name: str, filters: tuple[Callable[..., Any], ...] = (), finalize: Callable[[Any], Any] | None = None
) -> Template:
    """Return a template, compiled once, that escapes every value for HTML, and refuses a name that it is not given.

    Args:
        package: The package in which it lies.
        name: Its file.
        filters: What it calls on values, each by its function's name.
        finalize: Called on each value before it is escaped; `markupsafe.Markup` is not escaped.
    """
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        extensions=["jinja2.ext.do"],
    )
    environment.filters |= {used.__name__: used for used in filters}
    return environment.get_template(name)
