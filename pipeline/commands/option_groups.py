"""Groups of options that belong together."""

from collections.abc import Callable
from typing import Any

Decorator = Callable[[Any], Any]


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
