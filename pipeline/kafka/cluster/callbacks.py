"""Callbacks for the Kafka client whose exceptions leave the client call as they were raised."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def callback(function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function`` in a form that may be handed to the Kafka client.

    Before Python 3.12, confluent-kafka hands an exception on by its value alone. That of an exception which C code
    raised is not made yet: ``poll`` then raises a ``SystemError``, or a bare ``KafkaError``, which is no
    ``BaseException`` and passes every ``except`` clause. Python makes the exception where a clause catches it.
    """

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException:
            raise

    return guarded
