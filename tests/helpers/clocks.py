"""Clocks that tests set."""


class SetClock:
    """Seconds that a test sets."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
