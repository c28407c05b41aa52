"""Live records, backtests and trainings call each kernel of a partition from one place."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.backtest.training.training_history import read_history
from pipeline.engine.cards.card_join import CardJoin
from pipeline.features.kernel import CardWindows
from pipeline.learning.regimes import LabelRegime
from tests.helpers.histories import busy_history, play, transactions
from tests.helpers.live import Live
from tests.unit.backtest.test_backtest import models, options, run


def trained() -> None:
    table = transactions(busy_history(3, 100, invalid=0))
    in_time = table.sort_by("event_time").append_column("fraud", [[False] * len(table)])
    read_history([in_time], LabelRegime(), options())


def noting(kernel: Callable[..., Any], callers: dict[str, set[str]]) -> Callable[..., Any]:
    """The kernel, which notes the module that calls it."""

    def noted(*args: Any) -> Any:
        callers.setdefault(kernel.__qualname__, set()).add(sys._getframe(1).f_globals["__name__"])
        return kernel(*args)

    return noted


WAYS: dict[str, Callable[[], Any]] = {
    "live": lambda: play(busy_history(3, 100), Live(models(), options(2))),
    "backtest": lambda: run(busy_history(3, 100), options(2)),
    "training": trained,
}


@pytest.mark.parametrize("way", WAYS)
def test_kernels_of_cards_are_called_by_the_driver_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    callers: dict[str, set[str]] = {}
    for owner, method in ((CardJoin, "join"), (CardJoin, "forget"), (CardWindows, "profile")):
        monkeypatch.setattr(owner, method, noting(getattr(owner, method), callers))
    WAYS[way]()
    driver = {"pipeline.engine.cards.driver"}
    assert callers == {"CardJoin.join": driver, "CardJoin.forget": driver, "CardWindows.profile": driver}
