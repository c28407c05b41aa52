"""Settings that decide about records."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class DecisionSettings(BaseModel):
    """Currencies, times that are accepted, and what decisions hold."""

    base_currency: str = Field(default="EUR", pattern="^[A-Z]{3}$", description="Currency of all windows.")
    rates_file: Path | None = Field(
        default=None,
        description="Versioned rate table (JSON). Unset: the indicative one of the package for EUR; for another base "
        "currency, that currency alone.",
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
    audit_keys: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Keys of audit samples by the id that a policy names, as a JSON object. Whoever knows a key can "
        "tell which transactions are audited.",
    )
