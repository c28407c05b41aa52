"""Settings that decide about records, labels and models."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from pipeline.learning.reporting import LEAST_SHARE, Reported


class DecisionSettings(BaseModel):
    """Currencies, times that are accepted, and what decisions hold."""

    base_currency: str = Field(default="EUR", pattern="^[A-Z]{3}$", description="Currency of all windows.")
    rates_file: Path | None = Field(
        default=None,
        description="Versioned rate table (JSON). Unset: the indicative one of the package for EUR; for another base "
        "currency, that currency alone.",
    )
    mapping_file: Path | None = Field(
        default=None,
        description="Mapping of the producers' own JSON to the wire contract (TOML; `docs/mapping.md`). Unset: they "
        "write the contract's.",
    )
    features_file: Path | None = Field(
        default=None,
        description="Declaration of fields and features (TOML; `docs/declaring-features.md`), read from the "
        "environment as a program starts. A worker goes by the one that is published, and publishes this one where "
        "there is none.",
    )
    features_module: str | None = Field(
        default=None,
        description="Module with the functions that a declaration of features names; read from the environment.",
    )
    future_tolerance_s: float = Field(
        default=300.0,
        ge=0,
        description="An event later than its record's timestamp by more than this is a dead letter.",
    )
    deduplication_days: float = Field(
        default=120.0,
        gt=0,
        description="A repeat of a transaction within this many days of event time emits nothing.",
    )
    decision_features: Literal["selected", "all"] = Field(
        default="selected",
        description="Decisions that bear their features: alerts and audits (`selected`), or `all`; those of every "
        "decision are on `features` in any case.",
    )
    rule_max_alerts_per_hour: int = Field(
        default=100,
        ge=1,
        description="Cap on the alerts that a rule raises in an hour of event time, for files of rules that name none.",
    )
    rule_max_hit_rate: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Cap on the share of an hour's transactions that a rule hits, for files of rules that name none.",
    )
    audit_keys: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Keys of audit samples by the id that a policy names, as a JSON object. Whoever knows a key can "
        "tell which transactions are audited.",
    )


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
