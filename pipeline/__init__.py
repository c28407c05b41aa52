"""The fraud-detection pipeline: a pure core, adapters around it, and the programs that use both."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.backtest.api import Backtest
    from pipeline.backtest.runner.arguments import LabelPolicy, OnlineModel, Thresholds, TimeRange
    from pipeline.backtest.training.variants import Training
    from pipeline.protection.tokens import Tokeniser

__all__ = ["Backtest", "LabelPolicy", "OnlineModel", "Thresholds", "TimeRange", "Tokeniser", "Training"]

if _file := os.environ.get("FRAUD_PIPELINE_FEATURES_FILE"):
    # Before anything imports the catalogue of features, which holds what is declared.
    from pipeline.settings.features_file import FeaturesError, declare_features

    try:
        declare_features(Path(_file))
    except FeaturesError as _error:
        from pipeline.observability.terminal import printable

        sys.exit(f"Error: {printable(str(_error))}")

_ARGUMENTS = ("LabelPolicy", "OnlineModel", "Thresholds", "TimeRange")


def __getattr__(name: str) -> Any:
    # Whoever imports a part of the pipeline does not load what backtests need.
    if name == "Backtest":
        from pipeline.backtest.api import Backtest

        return Backtest
    if name in _ARGUMENTS:
        from pipeline.backtest.runner import arguments

        return getattr(arguments, name)
    if name == "Training":
        from pipeline.backtest.training.variants import Training

        return Training
    if name == "Tokeniser":
        from pipeline.protection.tokens import Tokeniser

        return Tokeniser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
