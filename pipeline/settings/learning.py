"""Settings of labels and models."""

from pathlib import Path

from pydantic import BaseModel, Field

from pipeline.learning.regimes import Reported
from pipeline.learning.report_delays import LEAST_SHARE


class LearningSettings(BaseModel):
    """Labels, and the models that learn from them."""

    label_grace_days: float = Field(
        default=120.0,
        gt=0,
        description="A label later than this after its transaction is counted and not joined.",
    )
    maturity_days: float = Field(
        default=30.0,
        gt=0,
        description="Event time after which a transaction without a report is presumed legitimate.",
    )
    reported_share: float = Field(
        default=1.0,
        ge=LEAST_SHARE,
        le=1,
        description="Share of the reported frauds whose reports come within the maturity: by it the online model "
        "allows for those that come later. Backtests with a declared label regime take its share instead.",
    )
    label_regime: Reported | None = Field(
        default=None,
        description="Transactions that get labels here: `all`, `frauds-only`, or `mixed`. Where it is set, a LightGBM "
        "version that was trained under another regime is warned about. Unset: nothing is compared.",
    )
    negative_sample_rate: float = Field(
        default=0.1,
        ge=1e-6,
        le=1,
        description="Share of legitimate transactions that become examples, weighted by its inverse.",
    )
    river_publish_interval_s: float = Field(
        default=1.0, ge=0, description="Shortest time between two published River versions."
    )
    river_classifier: str | None = Field(
        default=None,
        description="Dotted path of a River classifier to use instead of the default layer, "
        "such as `river.naive_bayes.GaussianNB`.",
    )
    registry_dir: Path | None = Field(
        default=None, description="Model registry. Unset: `registry` in the data directory."
    )
    barred_features: str = Field(
        default="",
        description="Names and patterns of features, separated by commas, that `train` refuses. No version that was "
        "trained on them can be promoted.",
    )
    second_approval: bool = Field(
        default=False,
        description="A LightGBM version of a new recipe becomes active only if somebody else than its proposer "
        "approves it.",
    )
