"""Settings of workers: their agents, local state, and how they are observed."""

import re
import socket
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator


class WorkerSettings(BaseModel):
    """Agents, local state, and how a worker is observed."""

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
        description="Shortest time between two batches of the label, feedback and learn agents, for which no alert "
        "waits: few large batches leave processors and brokers to the agents that decide.",
    )
    data_dir: Path = Field(
        default=Path(".fraud-pipeline"),
        description="Directory of all local state: embedded broker, model registry, feature store.",
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
    quarantine_after: int = Field(
        default=3,
        ge=1,
        description="A record that makes its agent fail, or kills its process, this many times is quarantined: it is "
        "skipped from then on.",
    )
    quarantine_limit: int = Field(
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
    webhook_url: str = Field(
        default="",
        repr=False,
        description="Address that `fraud-pipeline webhook` sends new cases and stopped rules to.",
    )
    webhook_secret_file: Path | None = Field(
        default=None,
        description="Secret that signs them (`whsec_` and base64); its owner alone may read it.",
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

    @field_validator("webhook_url")
    @classmethod
    def _can_be_sent_to(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            host, usable = (parts.hostname or "").encode("idna"), parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            host, usable = b"", False
        if url and not (host and usable and re.fullmatch(r"https?://[!-~]+", url)):
            raise ValueError("it should be a web address in ASCII, with a host and without a user")
        return url

    @property
    def agent_names(self) -> tuple[str, ...]:
        """Names in ``agents``, in order."""
        return tuple(name.strip() for name in self.agents.split(",") if name.strip())

    @property
    def snapshot_address(self) -> str | None:
        """Address of the snapshots, None where none are kept."""
        if self.snapshot_url is None:
            return str((self.data_dir / "snapshots").absolute())
        return self.snapshot_url or None
