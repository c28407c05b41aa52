"""The metrics: what each is called, what labels it has and what it means.

Prometheus shows the meanings as help, and ``docs/metrics.md`` lists them in this order.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple

from pipeline.scoring.kinds import BY_NAME

PREFIX: Final = "fraud_pipeline_"

STAGE_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
LONG_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)
"""Buckets for durations from a moment to an hour: snapshots and restores."""
LATENCY_BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
_AGENTS: Final = "label card score feedback learn"
_MODELS: Final = " ".join((*BY_NAME, "policy"))


class MetricDeclaration(NamedTuple):
    """The declaration of a metric."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: str
    """Names of its labels."""
    meaning: str
    known: str = ""
    """Values of its only label that are known: a series that first appears at 1 has no increase that Prometheus sees.
    """
    buckets: Sequence[float] = ()
    """Bounds of a histogram's buckets."""


def _histogram(labels: str, meaning: str, buckets: Sequence[float]) -> MetricDeclaration:
    return MetricDeclaration("histogram", labels, meaning, buckets=buckets)


_counter, _gauge = partial(MetricDeclaration, "counter"), partial(MetricDeclaration, "gauge")

WORKER_METRICS: Final[Mapping[str, MetricDeclaration]] = {
    "records_consumed": _counter("agent topic", "Records that the agent has read from the topic and committed."),
    "decisions": _counter("action", "Decisions, by `allow` or `alert`.", "allow alert"),
    "alerts": _counter(
        "selection",
        "Alerts, by what selected the transaction: `score`, `rule`, `audit` or `list`.",
        "score rule audit list",
    ),
    "rule_hits": _counter("rule", "Hits of active rules, by the rule's code: those that alert, and those that tag."),
    "shadow_rule_hits": _counter("rule", "Hits of rules in shadow, by the rule's code; they raise nothing."),
    "capped_rule_hits": _counter(
        "rule", "Hits of active rules that raise nothing, since their partition has reached the rule's cap of the hour."
    ),
    "list_hits": _counter(
        "kind",
        "Decisions about transactions with an entry of a list, by the list's kind: `block`, `suppress`, `allow` or "
        "`watch`. Suppressions of rules count among the next ones alone.",
        "block suppress allow watch",
    ),
    "overruled_decisions": _counter(
        "kind",
        "Decisions in which a list has overruled what would have decided: alerts of the score and of rules, and of "
        "block lists what suppressions and allow lists say. By the list's kind.",
        "block suppress allow",
    ),
    "rule_stopped": _gauge("rule", "1 for a rule that the breaker has stopped, 0 for an active one."),
    "dead_letters": _counter(
        "stage code", "Records written to `dead-letters`, by the stage that refused them and the class of error."
    ),
    "duplicates": _counter(
        "", "Transactions that repeated one within `FRAUD_PIPELINE_DEDUPLICATION_DAYS`; they emit nothing."
    ),
    "labels": _counter(
        "agent outcome",
        "Labels by agent and outcome: `accepted`, `invalid`; `first`, `changed`, `confirmed`, `noted`, `repeated`, "
        "`outranked`, `contradicted`, `ignored` (a rule's) of those that were joined; `early` (waits for its "
        "transaction), `too_late`, `unknown_transaction`, `not_sampled`, `profiled`. At `feedback`, `given_up` counts "
        "those of `unknown_transaction` that learning may have lost: a partition of `profiled` had dropped out.",
    ),
    "examples": _counter(
        "label",
        "Examples published for learning, by `fraud`, `legitimate`, `presumed_legitimate` or `withdrawn`.",
        "fraud legitimate presumed_legitimate withdrawn",
    ),
    "training_updates": _counter(
        "outcome",
        "Examples that the learn agent has read, by what became of them: `learned`, `corrections` (what was learned "
        "before is undone), `allowed_for` (the weights of others stand for it), `held` (part of a surge of labels), "
        "or why not.",
        "learned corrections held",
    ),
    "transactions_aborted": _counter(
        "agent", "Kafka transactions that were aborted; the batch is rolled back and processed again.", _AGENTS
    ),
    "stage_seconds": _histogram(
        "agent stage", "Seconds that one batch spent in one stage of the agent's work.", STAGE_BUCKETS_S
    ),
    "batch_records": _histogram("agent", "Records in one batch.", BATCH_BUCKETS),
    "lag_records": _gauge(
        "agent topic partition",
        "Records of the partition that stood behind the last batch, still to be read. The series ends when the "
        "partition is revoked.",
    ),
    "damaged_batches": _gauge(
        "agent topic partition",
        "1 while the agent waits at a record batch that the disk of the partition's leader has damaged, and that "
        "another replica in sync may hold whole. The series ends when that one leads, or the batch is quarantined.",
    ),
    "oldest_undecided_seconds": _gauge(
        "agent topic partition",
        "Age of the oldest record of the partition that the agent has not decided and committed; 0 when there is "
        "none. Measured every 2 seconds. It grows too where records cannot be read: behind an open transaction, or in "
        "a damaged batch. Age counts from the record's timestamp, or from when the worker first saw it where the "
        "record cannot be read or its clock is simulated (`FRAUD_PIPELINE_TIMESTAMPS=producer`). The series ends when "
        "the partition is revoked, and while measuring fails.",
    ),
    "assigned_partitions": _gauge("agent", "Partitions that the agent owns in this worker."),
    "model_version_info": _gauge(
        "model version",
        "1 for the version of each model that is active in this worker. A swap ends the series of the version before.",
    ),
    "model_changes": _counter(
        "model",
        "Changes of the active version of each model in this worker; the log names each LightGBM and policy version.",
        _MODELS,
    ),
    "models_refused": _counter(
        "model",
        "Published versions that this worker refused (other features, a wrong digest); the version before stays "
        "active.",
        _MODELS,
    ),
    "learning_frozen": _gauge(
        "", "1 while learning is frozen (`fraud-pipeline models freeze`): the learn agent takes no example in."
    ),
    "prequential_auc": _gauge(
        "model", "Area under the ROC curve of each model's scores as served, over the newest examples."
    ),
    "prequential_log_loss": _gauge("model", "Log loss of each model's scores as served, over the newest examples."),
    "records_refused": _counter(
        "topic",
        "Records of an internal topic that this worker could not read or did not believe; it reported them and went "
        "on.",
    ),
    "producers_renewed": _counter(
        "agent",
        "Producers that were replaced because an error of theirs could not be mended, or because a broker had refused "
        "a record of theirs as too large.",
        _AGENTS,
    ),
    "redelivered": _counter(
        "agent",
        "Records, and rows of `profiled`, that were read again although they had been worked on, and passed over "
        "(`at_least_once` only).",
        _AGENTS,
    ),
    "quarantined": _counter(
        "agent topic",
        "Records that were quarantined after repeated failures, and ranges that cannot be read (each counts as one); "
        "every later reading skips them.",
    ),
    "rerouted": _counter(
        "topic",
        "Transactions that lay in another partition than their card's and were forwarded to it.",
        "transactions",
    ),
    "decision_latency_seconds": _histogram(
        "", "Seconds from `ingested_at` (the card agent read the transaction) to `decided_at`.", LATENCY_BUCKETS_S
    ),
    "broker_unreachable_seconds": _gauge("", "Seconds since a broker last answered; 0 while one does."),
    "agent_state": _gauge(
        "agent state",
        "1 for the state that the agent is in: `starting`, `restoring`, `waiting for a model`, `running` or "
        "`stopping`.",
    ),
    "ready": _gauge("", "1 while `/readyz` answers 200."),
    "snapshots_written": _counter("agent", "Snapshots that are complete.", _AGENTS),
    "snapshots_failed": _counter("agent", "Snapshots that could not be written. The one before them stays.", _AGENTS),
    "snapshots_refused": _counter(
        "agent reason",
        "Snapshots that were found at a restore and not used, because they are damaged or belong to something else.",
    ),
    "snapshot_seconds": _histogram("agent", "Seconds that it took to write one, beside the work.", LONG_BUCKETS_S),
    "snapshot_bytes": _gauge(
        "agent partition", "Size of the newest snapshot. The series ends when the partition is revoked."
    ),
    "snapshot_timestamp_seconds": _gauge(
        "agent partition",
        "When the newest snapshot was taken, seconds since 1970; while there is none, when the partition's state was "
        "restored. The series ends when the partition is revoked.",
    ),
    "restore_seconds": _histogram(
        "agent source",
        "Seconds from a partition's assignment to its complete state, from a `snapshot` and the log behind it, or "
        "from the `log` alone.",
        LONG_BUCKETS_S,
    ),
    "records_replayed": _counter(
        "agent", "Committed records that were read again, silently, to restore state.", _AGENTS
    ),
    "store_entries": _gauge(
        "agent partition",
        "Entries of the partition's store; for `feedback` also the decisions in its segments. The series ends when "
        "the partition is revoked.",
    ),
    "store_bytes": _gauge(
        "agent partition",
        "Bytes of the partition's store on disk, segments included. The series ends when the partition is revoked.",
    ),
}
"""Metrics of a worker, by name without ``fraud_pipeline_`` and ``_total``."""

DRIFT_METRICS: Final[Mapping[str, MetricDeclaration]] = {
    "drift_alarm": _gauge("series", "1 while the series drifts, on one of the newest two days that were assessed."),
    "drift_p_value": _gauge("series", "How usual the newest assessed day is for the series, from its own past."),
    "drift_importance": _gauge(
        "series", "Gain share of the feature in the trees of the LightGBM version; 1 for scores, alerts and reports."
    ),
    "drift_day_timestamp_seconds": _gauge("", "Start of the newest day that was assessed, seconds since 1970."),
    "alert_precision": _gauge(
        "",
        "Share of the alerts of the newest 30 days that are fraud, of those with an example; what is presumed "
        "legitimate is not. NaN without one. Alerts of yesterday have few labels yet.",
    ),
    "fraud_amount": _gauge(
        "outcome",
        "Amount of the known frauds of the newest 30 days, in the base currency: `alerted` is the loss that alerts "
        "could prevent, `missed` the rest.",
    ),
}
"""Metrics of ``fraud-pipeline drift --follow``."""

WEBHOOK_METRICS: Final[Mapping[str, MetricDeclaration]] = {
    "webhook_events": _counter(
        "outcome",
        "Events that were `delivered`, tries that `failed` and are repeated, and events that were `skipped`: the "
        "receiver has refused them for good, and each is a dead letter.",
        "delivered failed skipped",
    ),
    "webhook_waiting_seconds": _gauge("", "Age of the event that is sent again and again; 0 while all are delivered."),
}
"""Metrics of ``fraud-pipeline webhook``."""
