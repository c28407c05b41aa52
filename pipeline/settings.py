"""Settings, from the environment (prefix ``FRAUD_PIPELINE_``) and from arguments; validated at the start."""

import socket
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import msgspec
from pydantic import AliasChoices, Field, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.learning.label_sources import ANY_SOURCE, LabelSources
from pipeline.learning.regimes import Reported
from pipeline.setting_files import SettingFiles
from schemas.messages import Label, Transaction
from schemas.topics import LABELS, TOPICS, TRANSACTIONS, Topic, topic_of_labels

PREFIX: Final = "FRAUD_PIPELINE_"
TopicName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
LabelSource = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Settings(BaseSettings):
    """Everything that can be set; ``docs/settings.md`` lists it."""

    # Errors do not repeat values: a password is one of them.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True
    )

    kafka_bootstrap_servers: str | None = Field(
        default=None,
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "FRAUD_PIPELINE_KAFKA_BOOTSTRAP_SERVERS"),
        description="The cluster to use. Unset: a real single-node Kafka is started from pip packages.",
    )
    kafka_config: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
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
        "outputs, and state that is replayed may then differ from the one that decided.",
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
    label_topics: dict[TopicName, tuple[LabelSource, ...]] = Field(
        default={LABELS.name: (ANY_SOURCE,)},
        min_length=1,
        description="Topics of labels, without prefix, and the sources that labels on each may claim, as a JSON "
        'object; `"*"` is every source. A label that claims another one is a dead letter.',
    )
    reported_share: float = Field(
        default=1.0,
        ge=0.2,
        le=1,
        description="Share of the reported frauds whose reports come within the maturity: by it the online model "
        "allows for those that come later.",
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
        repr=False,
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
        default=8.0, gt=0, description="A worker that is asked to stop ends after at most this long."
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
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines of services: `text`, or one JSON object each (`json`)."
    )
    log_levels: str = Field(
        default="info",
        pattern=r"^(debug|info|warning|error)(,[A-Za-z0-9_.]+=(debug|info|warning|error))*$",
        description="Least level of log lines (`debug`, `info`, `warning`, `error`), then those of single loggers: "
        "`info,pipeline.kafka.librdkafka=error`.",
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

    signing_key_file: Path | None = Field(
        default=None,
        description="Private Ed25519 key (PEM) that signs what is written to `models` and `control`; its owner alone "
        "may read it. Once set, what is not signed is refused.",
    )
    trusted_keys: str = Field(
        default="",
        description="Files of public Ed25519 keys (PEM), separated by commas, besides the own one. Where any is set, "
        "records of `models` and `control` that none of them signed are refused.",
    )
    unsigned_below: dict[str, int] = Field(
        default_factory=dict,
        description="Offset by topic (`models`, `control`) below which records need no signature, as a JSON object: "
        "those from before signatures.",
    )
    snapshot_keys: str = Field(
        default="",
        description="Files of secret keys, separated by commas: the first one signs snapshots, and those that none of "
        "them signed are not used.",
    )

    dead_letters: Literal["original", "redacted"] = Field(
        default="original",
        description="Content of a dead letter: the record's own bytes, or none of them (`redacted`): only where the "
        "record is, its size, and the code of the error.",
    )
    dropped_fields: str = Field(
        default="",
        description="Optional fields of transactions and labels, separated by commas, that `profiled` does not hold, "
        "such as `ip,device_id,note`.",
    )
    retention_days: dict[str, float] = Field(
        default_factory=dict,
        description="Days for which created topics keep their records, by topic without prefix, as a JSON object; the "
        "others keep them for ever. Fewer days than a restore of state reads are refused.",
    )

    token_fields: str = Field(
        default="card_id",
        description="Fields that `fraud-pipeline tokenise` replaces by tokens, separated by commas; `card_id` always "
        "is one of them.",
    )
    token_secret_file: Path | None = Field(
        default=None,
        description="Secret of at least 32 bytes without which nobody finds a value's key in the token database; its "
        "owner alone may read it.",
    )
    token_database_file: Path | None = Field(
        default=None,
        description="Database with a random key for each tokenised value. Unset: `tokens.sqlite` in the data "
        "directory.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the first of which wins; objects of several are merged."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, SettingFiles(settings_cls, PREFIX)

    @field_validator("dropped_fields")
    @classmethod
    def _optional(cls, names: str) -> str:
        """No reader of `profiled` could do without a required field."""
        required = {
            field.name for kind in (Transaction, Label) for field in msgspec.structs.fields(kind) if field.required
        }
        if found := required & {name.strip() for name in names.split(",")}:
            raise ValueError(f"{', '.join(sorted(found))} is required in every message: name optional fields only")
        return names

    @field_validator("label_topics")
    @classmethod
    def _own_topics(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        taken = {topic.name for topic in TOPICS} - {LABELS.name}
        for name, sources in value.items():
            if name in taken:
                raise ValueError(f"{name} is a topic of the pipeline, and holds no labels from outside: name another")
            if not sources:
                raise ValueError(f"topic {name} has no sources: name those that it speaks for, or leave it out")
        return value

    @model_validator(mode="after")
    def _pickles_are_signed(self) -> Self:
        """The state of a configured classifier is a pickle, which runs code that is in it."""
        if self.river_classifier is not None and self.signing_key_file is None and not self.trusted_keys:
            raise ValueError(
                "FRAUD_PIPELINE_RIVER_CLASSIFIER needs signatures, since the state of such a classifier is a pickle: "
                "set FRAUD_PIPELINE_SIGNING_KEY_FILE, or leave it out"
            )
        return self

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
    def topics_of_labels(self) -> tuple[Topic, ...]:
        """Topics that hold labels."""
        return tuple(topic_of_labels(name) for name in self.label_topics)

    @property
    def topics(self) -> tuple[Topic, ...]:
        """All topics of the pipeline."""
        return tuple(each for topic in TOPICS for each in (self.topics_of_labels if topic is LABELS else (topic,)))

    @property
    def inputs(self) -> frozenset[str]:
        """Full names of the topics that producers write to."""
        return frozenset(self.topic(topic.name) for topic in (TRANSACTIONS, *self.topics_of_labels))

    @property
    def label_sources(self) -> LabelSources:
        """Rule by which a label's topic speaks for its source; ``simulator`` needs a simulated clock."""
        allowed = {name: frozenset(sources) for name, sources in self.label_topics.items()}
        return LabelSources(allowed, simulated=self.timestamps == "producer")

    @property
    def token_names(self) -> tuple[str, ...]:
        """Names in ``token_fields``, with ``card_id``."""
        names = ("card_id", *(name.strip() for name in self.token_fields.split(",") if name.strip()))
        return tuple(dict.fromkeys(names))

    @property
    def token_database(self) -> Path:
        """File of the token database."""
        return self.token_database_file or self.data_dir / "tokens.sqlite"

    @property
    def dropped_names(self) -> frozenset[str]:
        """Names in ``dropped_fields``."""
        return frozenset(name.strip() for name in self.dropped_fields.split(",") if name.strip())

    @property
    def agent_names(self) -> tuple[str, ...]:
        """Names in ``agents``, in order."""
        return tuple(name.strip() for name in self.agents.split(",") if name.strip())

    def topic(self, name: str) -> str:
        """Name of a topic, group or transactional id on the cluster: the prefix and ``name``."""
        return f"{self.topic_prefix}{name}"
