"""Undo for the small Python state of a kernel: a dictionary remembers what a batch found under the keys it wrote."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class JournaledDict(dict[K, V]):
    """A dictionary whose `put` can be rolled back; cost and memory of that follow the keys that a batch wrote."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[K, V | None] = {}

    def put(self, key: K, value: V) -> None:
        """Set a value; None stands for no value and may not be one."""
        if key not in self._before:
            self._before[key] = self.get(key)
        self[key] = value

    def commit(self) -> None:
        """Commit what was put."""
        self._before.clear()

    def rollback(self) -> None:
        """Take back what was put since the last time."""
        for key, value in self._before.items():
            if value is None:
                self.pop(key, None)
            else:
                self[key] = value
        self._before.clear()
