"""Settings, from the environment (prefix ``FRAUD_PIPELINE_``) and from arguments; validated at the start."""

import socket
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.learning.regimes import Reported


class Settings(BaseSettings):
    """Everything that can be set; ``docs/settings.md`` lists it."""

    model_config = SettingsConfigDict(env_prefix="FRAUD_PIPELINE_", frozen=True, extra="forbid", populate_by_name=True)

    kafka_bootstrap_servers: str | None = Field(
        default=None,
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "FRAUD_PIPELINE_KAFKA_BOOTSTRAP_SERVERS"),
        description="The cluster to use. Unset: a real single-node Kafka is started from pip packages.",
    )
    kafka_config: dict[str, str] = Field(
        default_factory=dict,
        description="Further librdkafka properties for every client, as a JSON object (security, for instance).",
    )
    data_dir: Path = Field(
        default=Path(".fraud-pipeline"),
        description="Directory of all local state: embedded broker, model registry, feature store.",
    )
    topic_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Put before every topic, group and transactional id.",
    )
    card_partitions: int = Field(default=4, ge=1, description="Partitions of the topics keyed by card.")
    merchant_partitions: int = Field(default=4, ge=1, description="Partitions of the topic keyed by merchant.")
    replication_factor: int | None = Field(
        default=None,
        ge=1,
        description="Replicas of created topics. Unset: 3 where the cluster has three brokers, else 1.",
    )
    min_insync_replicas: int | None = Field(
        default=None,
        ge=1,
        description="Replicas that must have a record of a created topic before it counts as written. "
        "Unset: 2 where there are three replicas, else 1.",
    )
    timestamps: Literal["broker", "producer"] = Field(
        default="broker",
        description="Who stamps `transactions` and `labels`: the broker on arrival, or the producer "
        "(replays with a simulated clock).",
    )
    create_topics: bool = Field(default=True, description="Create missing topics at the start of a worker.")
    group_protocol: Literal["auto", "consumer", "classic"] = Field(
        default="auto",
        description="How agents join their groups: `consumer` (KIP-848), `classic`, or what the brokers offer.",
    )
    accept_short_retention: bool = Field(
        default=False,
        description="Start although topics delete records that a restore of state must read; it is only warned about.",
    )
    accept_producer_timestamps: bool = Field(
        default=False,
        description="Start although producers stamp `transactions` or `labels` and brokers should: one whose clock is "
        "ahead then makes late what others write.",
    )
    accept_lost_records: bool = Field(
        default=False,
        description="Start although records that a group has not read are gone; they are never decided.",
    )
    accept_other_kernel: bool = Field(
        default=False,
        description="Start although undecided records of `profiled` are of another kernel; they are quarantined.",
    )
    restart_from_beginning: bool = Field(
        default=False,
        description="Start although an agent's offsets are lost while its results exist; everything is decided again.",
    )
    instance: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="Stable, unique name of this worker; part of its transactional ids.",
    )
    agents: str = Field(
        default="label,card,score,feedback,learn", description="Agents that this worker runs, separated by commas."
    )
    delivery: Literal["exactly_once", "at_least_once"] = Field(
        default="exactly_once",
        description="Delivery guarantee of outputs against input offsets. Under at_least_once a crash may repeat "
        "outputs, and state that is folded again may then differ from the one that decided.",
    )
    batch_max_records: int = Field(
        default=2_000, ge=1, description="Most rows that one batch holds: records, or rows of blocks."
    )
    feedback_interval_s: float = Field(
        default=0.25,
        ge=0,
        le=60,
        description="Shortest time between two batches of the feedback and learn agents, for which no alert waits: few "
        "large batches leave processors and brokers to the agents that decide.",
    )
    base_currency: str = Field(default="EUR", pattern="^[A-Z]{3}$", description="Currency of all windows.")
    rates_file: Path | None = Field(
        default=None,
        description="Versioned rate table (JSON). Unset: the indicative one that ships with the package.",
    )
    future_tolerance_s: float = Field(
        default=300.0,
        ge=0,
        description="An event later than its record's timestamp by more than this is a dead letter.",
    )
    dedup_horizon_days: float = Field(
        default=120.0,
        gt=0,
        description="A repeat of a transaction within this many days of event time emits nothing.",
    )
    label_horizon_days: float = Field(
        default=120.0,
        gt=0,
        description="A label later than this after its transaction is counted and not joined.",
    )
    maturity_days: float = Field(
        default=30.0,
        gt=0,
        description="Event time after which a transaction without a report is presumed legitimate.",
    )
    label_regime: Reported | None = Field(
        default=None,
        description="Transactions that get labels here: `all`, `frauds-only`, or `mixed`. Where it is set, a LightGBM "
        "version that was trained under another regime is warned about. Unset: nothing is compared.",
    )
    negative_sample_rate: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Share of legitimate transactions that become examples, weighted by its inverse.",
    )
    audit_keys: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Keys of audit samples by the id that a policy names, as a JSON object. Whoever knows a key can "
        "tell which transactions are audited.",
    )
    decision_features: Literal["selected", "all"] = Field(
        default="selected",
        description="Decisions that bear their features: alerts and audits (`selected`), or `all`; those of every "
        "decision are on `features` in any case.",
    )
    river_publish_interval_s: float = Field(
        default=1.0, ge=0, description="Shortest time between two published River versions."
    )
    river_classifier: str | None = Field(
        default=None,
        description="Dotted path of a River classifier to use instead of the default layer, "
        "such as `river.naive_bayes.GaussianNB`.",
    )
    snapshot_url: str | None = Field(
        default=None,
        description="Where snapshots of state are kept: a directory or any fsspec URL, one that all workers reach "
        "where they run on several machines. Unset: `snapshots` in the data directory. Empty: none are kept.",
    )
    snapshot_interval_s: float = Field(
        default=60.0, gt=0, description="Time between two snapshots of a partition's state."
    )
    snapshots_kept: int = Field(default=2, ge=1, description="Snapshots of each partition that are kept.")
    store_memory_mb: int = Field(
        default=256, ge=16, description="Memory that the stores of all partitions share; the rest of them is on disk."
    )
    set_aside_after: int = Field(
        default=3,
        ge=1,
        description="A record that makes its agent fail, or kills its process, this many times is quarantined: it is "
        "skipped from then on.",
    )
    set_aside_limit: int = Field(
        default=20,
        ge=0,
        description="Most records that one agent quarantines within a day, all its workers together, before a worker "
        "ends instead. What a producer can cause at will (a range that cannot be read, an output too large) does not "
        "count.",
    )
    shutdown_timeout_s: float = Field(
        default=8.0, gt=0, description="A worker that is told to stop ends after at most this long."
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address that the metrics endpoint binds to.")
    metrics_port: int = Field(
        default=9464, ge=0, le=65535, description="Port of the metrics endpoint; 0 for any free one."
    )
    liveness_timeout_s: float = Field(
        default=300.0,
        gt=0,
        description="An agent whose thread has not come round for this long makes `/livez` fail.",
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
    registry_dir: Path | None = Field(
        default=None, description="Model registry. Unset: `registry` in the data directory."
    )

    @property
    def registry_path(self) -> Path:
        """Directory of the model registry."""
        return self.registry_dir if self.registry_dir is not None else self.data_dir / "registry"

    @property
    def snapshot_address(self) -> str | None:
        """Address of the snapshots, None where none are kept."""
        if self.snapshot_url is None:
            return str((self.data_dir / "snapshots").absolute())
        return self.snapshot_url or None

    @property
    def agent_names(self) -> tuple[str, ...]:
        """Names in ``agents``, in order."""
        return tuple(name.strip() for name in self.agents.split(",") if name.strip())

    def topic(self, name: str) -> str:
        """Name of a topic, group or transactional id on the cluster: the prefix and ``name``."""
        return f"{self.topic_prefix}{name}"
