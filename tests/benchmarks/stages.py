"""Processor time by stage, without a profiler: a clock around functions that are called once a batch."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class Stages:
    """Exclusive processor time of this thread in each stage: what a nested stage takes counts for that one alone."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._stack: list[str] = []
        self._since_s = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside for ``name``."""
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    @contextmanager
    def around(self, functions: dict[str, list[tuple[Any, str]]]) -> Iterator[None]:
        """Count calls of methods, given by stage as (class, name), until the block is left."""
        with ExitStack() as stack:
            for name, methods in functions.items():
                for owner, attribute in methods:
                    stack.callback(setattr, owner, attribute, self._wrap(owner, attribute, name))
            yield

    def _wrap(self, owner: Any, attribute: str, name: str) -> Any:
        inner = getattr(owner, attribute)

        @functools.wraps(inner)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.stage(name):
                return inner(*arguments, **named)

        setattr(owner, attribute, timed)
        return inner

    def _turn(self) -> None:
        now_s = self._clock()
        if self._stack:
            name = self._stack[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now_s - self._since_s
        self._since_s = now_s
