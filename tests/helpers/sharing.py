"""A pytest plugin with which several processes share the tests: each takes the next module that nobody has taken.

``python -m pytest -p tests.helpers.sharing --share DIRECTORY``, as often as there shall be processes; the directory is
to be a new one for each run. A module stays whole, so that its fixtures are made once; those of the session are made in
each process. Modules take from nothing to minutes, so that nobody could divide them beforehand.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", type=Path, metavar="DIRECTORY", help="run what no other process has taken there")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """pytest's own loop over the modules that this process takes; None leaves it to that one."""
    directory = session.config.getoption("share")
    if directory is None or session.testsfailed or session.config.option.collectonly:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    ours = _taken(session.items, directory)
    item = next(ours, None)
    while item is not None:
        # Known before this one runs: whatever the next one does not need is torn down after it.
        following = next(ours, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def _taken(items: Iterable[pytest.Item], directory: Path) -> Iterator[pytest.Item]:
    ours: dict[str, bool] = {}
    for item in items:
        module = item.nodeid.partition("::")[0]
        if module not in ours:
            ours[module] = _take(directory / module.replace("/", "-"))
        if ours[module]:
            yield item


def _take(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
