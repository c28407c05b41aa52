"""Meanings of the metrics: Prometheus shows them as help, and ``docs/metrics.md`` lists them."""

from typing import Final

METRIC_MEANINGS: Final = {
    "records_consumed": "Records that the agent has read from the topic and committed.",
    "decisions": "Decisions, by `allow` or `alert`.",
    "alerts": "Alerts, by what selected the transaction: `score`, `rule` or `audit`.",
    "dead_letters": "Records written to `dead-letters`, by the stage that refused them and the class of error.",
    "duplicates": "Transactions that repeated one within `FRAUD_PIPELINE_DEDUPLICATION_DAYS`; they emit nothing.",
    "labels": (
        "Labels by agent and outcome: `accepted`, `invalid`; `first`, `changed`, `confirmed`, `noted`, `repeated`, "
        "`outranked`, `contradicted`, `ignored` (a rule's) of those that were joined; `early` (waits for its "
        "transaction), `too_late`, `unknown_transaction`, `not_sampled`, `profiled`. At `feedback`, `given_up` counts "
        "those of `unknown_transaction` that learning may have lost: a partition of `profiled` had dropped out."
    ),
    "examples": "Examples published for learning, by `fraud`, `legitimate`, `presumed_legitimate` or `withdrawn`.",
    "training_updates": (
        "Examples that the learn agent has read, by what became of them: `learned`, `corrections` (what was learned "
        "before is undone), `allowed_for` (the weights of others stand for it), `held` (part of a surge of labels), "
        "or why not."
    ),
    "transactions_aborted": "Kafka transactions that were aborted; the batch is rolled back and processed again.",
    "stage_seconds": "Seconds that one batch spent in one stage of the agent's work.",
    "batch_records": "Records in one batch.",
    "lag_records": (
        "Records of the partition that stood behind the last batch, still to be read. The series ends when "
        "the partition is revoked."
    ),
    "damaged_batches": (
        "1 while the agent waits at a record batch that the disk of the partition's leader has damaged, and that "
        "another replica in sync may hold whole. The series ends when that one leads, or the batch is quarantined."
    ),
    "oldest_undecided_seconds": (
        "Age of the oldest record of the partition that the agent has not decided and committed; 0 when there "
        "is none. Measured every 2 seconds. It grows too where records cannot be read: behind an open "
        "transaction, or in a damaged batch. Age counts from the record's timestamp, or from when the worker "
        "first saw it where the record cannot be read or its clock is simulated "
        "(`FRAUD_PIPELINE_TIMESTAMPS=producer`). The series ends when the partition is revoked, and while "
        "measuring fails."
    ),
    "assigned_partitions": "Partitions that the agent owns in this worker.",
    "model_version_info": (
        "1 for the version of each model that is active in this worker. A swap ends the series of the version before."
    ),
    "model_changes": (
        "Changes of the active version of each model in this worker; the log names each LightGBM and policy version."
    ),
    "models_refused": (
        "Published versions that this worker refused (other features, a wrong digest); the version before stays active."
    ),
    "learning_frozen": (
        "1 while learning is frozen (`fraud-pipeline models freeze`): the learn agent takes no example in."
    ),
    "prequential_auc": "Area under the ROC curve of each model's scores as served, over the newest examples.",
    "prequential_log_loss": "Log loss of each model's scores as served, over the newest examples.",
    "records_refused": (
        "Records of an internal topic that this worker could not read or did not believe; it reported them and went on."
    ),
    "producers_renewed": (
        "Producers that were replaced because an error of theirs could not be mended, or because a broker had "
        "refused a record of theirs as too large."
    ),
    "redelivered": (
        "Records, and rows of `profiled`, that were read again although they had been worked on, and passed "
        "over (`at_least_once` only)."
    ),
    "quarantined": (
        "Records that were quarantined after repeated failures, and ranges that cannot be read (each counts "
        "as one); every later reading skips them."
    ),
    "rerouted": "Transactions that lay in another partition than their card's and were forwarded to it.",
    "decision_latency_seconds": "Seconds from `ingested_at` (the card agent read the transaction) to `decided_at`.",
    "broker_unreachable_seconds": "Seconds since a broker last answered; 0 while one does.",
    "agent_state": (
        "1 for the state that the agent is in: `starting`, `restoring`, `waiting for a model`, `running` or `stopping`."
    ),
    "ready": "1 while `/readyz` answers 200.",
    "snapshots_written": "Snapshots that are complete.",
    "snapshots_failed": "Snapshots that could not be written. The one before them stays.",
    "snapshots_refused": (
        "Snapshots that were found at a restore and not used, because they are damaged or belong to something else."
    ),
    "snapshot_seconds": "Seconds that it took to write one, beside the work.",
    "snapshot_bytes": "Size of the newest snapshot. The series ends when the partition is revoked.",
    "snapshot_timestamp_seconds": (
        "When the newest snapshot was taken, seconds since 1970; while there is none, when the partition's "
        "state was restored. The series ends when the partition is revoked."
    ),
    "restore_seconds": (
        "Seconds from a partition's assignment to its complete state, from a `snapshot` and the log behind "
        "it, or from the `log` alone."
    ),
    "records_replayed": "Committed records that were read again, silently, to restore state.",
    "store_entries": (
        "Entries of the partition's store; for `feedback` also the decisions in its segments. The series ends "
        "when the partition is revoked."
    ),
    "store_bytes": (
        "Bytes of the partition's store on disk, segments included. The series ends when the partition is revoked."
    ),
    "drift_alarm": "1 while the series drifts, on one of the newest two days that were assessed.",
    "drift_p_value": "How usual the newest assessed day is for the series, from its own past.",
    "drift_importance": (
        "Gain share of the feature in the trees of the LightGBM version; 1 for scores, alerts and reports."
    ),
    "drift_day_timestamp_seconds": "Start of the newest day that was assessed, seconds since 1970.",
    "alert_precision": (
        "Share of the alerts of the newest 30 days that are fraud, of those with an example; what is presumed "
        "legitimate is not. NaN without one. Alerts of yesterday have few labels yet."
    ),
    "fraud_amount": (
        "Amount of the known frauds of the newest 30 days, in the base currency: `alerted` is the loss that alerts "
        "could prevent, `missed` the rest."
    ),
}
"""Meaning of each metric, by its name without ``fraud_pipeline_`` and ``_total``, in the order of the page."""
