"""Durations of tests beside their limits (`pytest-timeout`): a limit only ends what hangs."""

from collections.abc import Iterator, Mapping
from typing import Final

import pytest

SHARE: Final = 1 / 3
"""Largest share of its limit that a test may take on a loaded machine before the limit is to be raised."""


def limit_s(item: pytest.Item) -> float:
    """Return the limit of a test in seconds, for setup, call and teardown together: its mark's, else that of all."""
    mark = item.get_closest_marker("timeout")
    given = mark.args[0] if mark is not None and mark.args else item.config.getoption("timeout")
    return float(given or item.config.getini("timeout"))


def near_limits(durations_s: Mapping[str, float], limits_s: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for each test that took more than `SHARE` of its limit, by its node id."""
    for test, seconds in sorted(durations_s.items(), key=lambda item: -item[1]):
        if seconds > SHARE * limits_s[test]:
            yield f"{test} took {seconds:.0f} s of a limit of {limits_s[test]:.0f} s: raise it with pytest.mark.timeout"
