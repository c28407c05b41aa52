"""Compile the kernels into Numba's cache: ``python -m tests.helpers.kernels``.

Run it before several processes that need them. Otherwise each of these compiles all kernels, at the same time.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

# As `tests/conftest.py` has it.
os.environ.setdefault("FRAUD_PIPELINE_FEATURES_FILE", str(Path(__file__).parents[1] / "features.toml"))

from agents.preparation import prepare_kernels, prepare_windows
from pipeline.backtest import Order, replay
from pipeline.decision.policy import Policy
from pipeline.decision.rules import RuleSet
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from tests.contract.records import RATES
from tests.helpers.champion import rule
from tests.helpers.histories import DAY, busy_history, labels, transactions
from tests.helpers.models import small_model


def main() -> None:
    """Compile those of the agents, and carry a short history through a backtest."""
    with TemporaryDirectory() as directory:
        prepare_kernels(Settings(), RATES, Path(directory) / "segments")
    prepare_windows()
    base = small_model()
    policy = Policy(0.5, blend=0.7, audit_rate=0.05, lightgbm_version=base.version)
    models = ActiveModels(base, first_river(), policy, rules=RuleSet([rule("any", "amount > 0")]))
    options = CardOptions(RATES, 300_000_000, 5 * DAY, 8 * DAY, 2)
    history = busy_history(1, 100)
    for _ in replay(models, [transactions(history)], [labels(history)], options=options, order=Order.RECORDED):
        pass


if __name__ == "__main__":
    main()
