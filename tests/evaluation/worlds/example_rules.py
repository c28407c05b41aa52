"""The rules of ``examples/rules`` in simulated worlds: what each finds beside a trained model, and what that costs.

``FRAUD_PIPELINE_FEATURES_FILE=examples/rules/features.toml python -m tests.evaluation.worlds.example_rules`` prints the
table of ``docs/rules.md``. It takes some minutes a world. Worlds have neither cash nor declined payments.
"""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from click.testing import CliRunner
from msgspec.structs import replace

from pipeline.backtest.api import Backtest
from pipeline.backtest.metrics.rule_worth import RuleWorth
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.runner.arguments import TimeRange
from pipeline.backtest.runner.model_library import ACTIVE, ModelLibrary
from pipeline.cli import main
from pipeline.decision.rules import RuleSet
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.settings import Settings
from pipeline.settings.rule_files import read_directory
from tests.evaluation.parts import Table, markdown
from tests.evaluation.worlds.families import CHOOSING, SCORED_DAYS, START, Family, frame_of
from tests.evaluation.worlds.population import NAMES, ONLINE, Size
from tests.helpers.documents import ROOT

SIZE: Final = Size(2_500, 1_500, 56)
SEED: Final = 1
_MCC: Final = dict(
    zip(NAMES, ["5411", "5814", "5812", "5541", "4111", "5912", "5651", "5732", "5816", "5399", "4722"], strict=True)
)  # fmt: skip
_COUNTRIES: Final = ("DE", "AT", "FR", "NL")
_ALERTS_A_DAY: Final = "10"
_ALONE: Final = ("frauds_alone", "money_alone", "false_alone")


def world(family: Family, size: Size = SIZE) -> pd.DataFrame:
    """Return a world with what its rules read: codes of merchants, channels, and countries, of which none is online."""
    population, events = family.events(SEED, size)
    category, district = population.category[events.merchant], population.district[events.merchant]
    country = np.array(_COUNTRIES, object)[district.clip(max=population.districts - 1) * 4 // population.districts]
    return frame_of(events).assign(
        mcc=np.array([_MCC[name] for name in NAMES], object)[category],
        channel=np.where(ONLINE[category], "web", "pos"),
        country=np.where(ONLINE[category], None, country),
        transaction_type="purchase",
    )


def measured(frame: pd.DataFrame, alerts_a_day: str = _ALERTS_A_DAY, scored_days: int = SCORED_DAYS) -> list[RuleWorth]:
    """Return the worth of the example rules on the last days of a world, beside a model of the days before them."""
    files = read_directory(ROOT / "examples/rules")
    active = RuleSet(replace(file.rule, state="active") for file in files)
    days = (frame["event_time"].max() - pd.Timestamp(START, tz="UTC")).days + 1
    begin = START.replace(tzinfo=UTC) + timedelta(days=days - scored_days)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "world.parquet")
        frame.to_parquet(path)
        settings = Settings(data_dir=Path(name, "data"), kafka_bootstrap_servers=None)
        options = ["--known-before", f"{begin:%Y-%m-%d}", "--budget-per-day", alerts_a_day, "--force"]
        environment = {"FRAUD_PIPELINE_DATA_DIR": str(settings.data_dir)}
        trained = CliRunner().invoke(main, ["train", str(path), *options], env=environment)
        assert trained.exit_code == 0, trained.output
        library = ModelLibrary(settings)
        models = ActiveModels(library.lightgbm(ACTIVE), library.untrained_river(), library.policy(ACTIVE), rules=active)
        result = Backtest(path, range=TimeRange(begin), models={"active": models}, settings=settings).run()
        return build_report(result, ReportOptions(replicates=0)).content.variants[0].rules


def table(found: dict[str, Sequence[RuleWorth]]) -> Table:
    """Return a row for each rule: its figures in each world, and the sums of what only it finds."""
    cells: dict[str, dict[str, RuleWorth]] = defaultdict(dict)
    for name, rules in found.items():
        for rule in rules:
            cells[rule.code][name] = rule
    rows = []
    for code, worlds in sorted(cells.items(), key=lambda item: -sum(rule.money_alone for rule in item[1].values())):
        of_worlds = [f"{worlds[name].hits:,} / {worlds[name].frauds:,}" for name in found]
        sums = [sum(getattr(rule, name) for rule in worlds.values()) for name in _ALONE]
        rows.append([f"`{code}`", *of_worlds, *(f"{value:,.0f}" for value in sums)])
    head = ("rule", *found, "frauds alone", "money alone", "false alerts alone")
    return markdown("Example rules: hits / frauds", head, rows)


if __name__ == "__main__":
    print(*table({family.name: measured(world(family)) for family in CHOOSING}).lines, sep="\n")
