"""A pytest plugin with which several processes share the tests: each takes the next module that nobody has taken.

``python -m pytest -p tests.helpers.sharing --share DIRECTORY``, as often as there shall be processes; the directory is
to be a new one for each run. Some of them take the tests with a broker first (``--broker-first``), the others last. A
module stays whole, so that its fixtures are made once; those of the session are made in each process. Modules take from
nothing to minutes, so the longest come first: at the end no process waits for another.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

LONGEST: Final = (
    "tests/integration/test_chaos.py",
    "tests/integration/test_run_pipeline.py",
    "tests/integration/test_unreadable.py",
    "tests/integration/test_broker.py",
    "tests/integration/test_cluster.py",
    "tests/integration/test_lifecycle.py",
    "tests/integration/test_reprocess.py",
    "tests/integration/test_session.py",
    "tests/integration/test_startup.py",
    "tests/integration/test_rates.py",
    "tests/integration/test_backtest_topics.py",
    "tests/integration/test_retrain.py",
    "tests/integration/test_backtest_example.py",
    "tests/integration/test_export.py",
    "tests/integration/test_secured_cluster.py",
    "tests/integration/test_agents.py",
    "tests/integration/test_drift_of_topics.py",
    "tests/benchmarks/test_ours_on_a_broker.py",
    "tests/integration/test_label_command.py",
    "tests/integration/test_pace.py",
    "tests/integration/test_undecided.py",
    "tests/integration/test_hidden_records.py",
    "tests/integration/test_models.py",
    "tests/evaluation/test_handbook.py",
    "tests/property/test_at_least_once.py",
    "tests/unit/backtest/test_backtest_labelling.py",
    "tests/unit/backtest/test_backtest_renewing.py",
    "tests/unit/backtest/test_backtest.py",
    "tests/test_project/test_notebook.py",
)
"""Modules that take about half a minute or longer, the longest first. The order of the others does not matter."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", type=Path, metavar="DIRECTORY", help="run what no other process has taken there")
    parser.addoption("--broker-first", action="store_true", help="take the tests with a broker before the others")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """pytest's own loop over the modules that this process takes; None leaves it to that one."""
    directory = session.config.getoption("share")
    if directory is None or session.testsfailed or session.config.option.collectonly:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    ordered = longest_first(session.items, broker_first=session.config.getoption("broker_first"))
    ours = _taken(ordered, directory)
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


def longest_first(items: Sequence[pytest.Item], *, broker_first: bool) -> list[pytest.Item]:
    """Return the tests module by module: those with a broker first or last, of either those of `LONGEST` first."""
    ranks = {module: rank for rank, module in enumerate(LONGEST)}
    with_broker = {_module(item) for item in items if item.get_closest_marker("broker") is not None}

    def rank(item: pytest.Item) -> tuple[bool, int]:
        module = _module(item)
        return (module in with_broker) != broker_first, ranks.get(module, len(ranks))

    return sorted(items, key=rank)


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _taken(items: Iterable[pytest.Item], directory: Path) -> Iterator[pytest.Item]:
    ours: dict[str, bool] = {}
    for item in items:
        module = _module(item)
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
