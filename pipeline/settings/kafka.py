"""Settings of the cluster, its topics, and what a start accepts."""

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, Field, StringConstraints, field_validator

from pipeline.learning.label_sources import ANY_SOURCE, LabelSources
from schemas.topics import LABELS, TOPICS, Topic, topic_of_labels

TopicName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
LabelSource = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class KafkaSettings(BaseModel):
    """Cluster, topics, and what a start accepts."""

    kafka_bootstrap_servers: str | None = Field(
        min_length=1,
        default=None,
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "FRAUD_PIPELINE_KAFKA_BOOTSTRAP_SERVERS"),
        description="The cluster to use. Unset: a real single-node Kafka is started from pip packages.",
    )
    kafka_config: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Further librdkafka properties for every client, as a JSON object (security, for instance).",
    )
    topic_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Put before every topic, group and transactional id.",
    )
    label_topics: dict[TopicName, tuple[LabelSource, ...]] = Field(
        default={LABELS.name: (ANY_SOURCE,)},
        min_length=1,
        description="Topics of labels, without prefix, and the sources that labels on each may claim, as a JSON "
        'object; `"*"` is every source. A label that claims another one is a dead letter.',
    )
    card_partitions: int = Field(
        default=4, ge=1, description="Partitions of the topics keyed by card; fixed once these exist."
    )
    merchant_partitions: int = Field(
        default=4, ge=1, description="Partitions of the topic keyed by merchant; fixed once it exists."
    )
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
    retention_days: dict[str, float] = Field(
        default_factory=dict,
        description="Days for which created topics keep their records, by topic without prefix, as a JSON object; the "
        "others keep them for ever. Fewer days than a restore of state reads are refused.",
    )
    create_topics: bool = Field(default=True, description="Create missing topics at the start of a worker.")
    group_protocol: Literal["auto", "consumer", "classic"] = Field(
        default="auto",
        description="How agents join their groups: `consumer` (KIP-848), `classic`, or what the brokers offer.",
    )
    transaction_client: Literal["batched", "librdkafka"] = Field(
        default="batched",
        description="What writes transactions: `batched` asks each broker once for all partitions of a commit, "
        "`librdkafka` once for each partition.",
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
    accept_damaged_control: bool = Field(
        default=False,
        description="Start although a disk has damaged a batch of `control`; what it held is lost to this worker.",
    )
    damaged_batch_wait_s: float = Field(
        default=600.0,
        ge=0,
        description="Seconds for which a batch that a disk has damaged waits for another replica in sync to lead its "
        "partition, before it is quarantined.",
    )
    restart_from_beginning: bool = Field(
        default=False,
        description="Start although an agent's offsets are lost while its results exist; everything is decided again.",
    )

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
        return frozenset(self.topic(topic.name) for topic in self.topics if topic.is_input)

    @property
    def label_sources(self) -> LabelSources:
        """Rule by which a label's topic speaks for its source; ``simulator`` needs a simulated clock."""
        allowed = {name: frozenset(sources) for name, sources in self.label_topics.items()}
        return LabelSources(allowed, simulated=self.timestamps == "producer")

    def topic(self, name: str) -> str:
        """Name of a topic, group or transactional id on the cluster: the prefix and ``name``."""
        return f"{self.topic_prefix}{name}"
