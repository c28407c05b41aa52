"""The programs of the pages that need a cluster are run on the session's broker, as the pages show them."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.models.publish import ControlWriter, ModelChange, VersionToPublish
from pipeline.models.registry import LIGHTGBM, Registry
from pipeline.settings import Settings
from pipeline.simulation.simulator import make_profiles, simulate_days
from schemas.records import Record
from schemas.topics import ALERTS, DEAD_LETTERS, DECISIONS, EXAMPLES, LABELS, PROFILED, TRANSACTIONS, Topic
from tests.contract.records import RATES
from tests.evaluation.worlds.families import FAMILIES
from tests.evaluation.worlds.population import Size
from tests.helpers.champion import active
from tests.helpers.documents import ROOT, fenced
from tests.helpers.logs import START, LabelLog, label, microseconds, to, transaction
from tests.helpers.models import example
from tests.helpers.pages import Stage
from tests.helpers.topics import Cluster
from tests.unit.engine.test_engine_card import options

pytestmark = pytest.mark.broker

GOLDEN = ROOT / "schemas/golden/v1"
ENCODE = msgspec.json.Encoder(decimal_format="number").encode


def message(name: str, **changes: Any) -> bytes:
    """Return a golden message with other fields."""
    return ENCODE({**json.loads((GOLDEN / f"{name}.json").read_bytes()), **changes})


def write(cluster: Cluster, topic: Topic, values: Iterable[bytes], at: datetime = START) -> None:
    for value in values:
        cluster.write(topic, value, b"C00042", at)
    cluster.flush()


def desk(stage: Stage, cluster: Cluster) -> None:
    at = datetime(2018, 6, 11, 14, 3, 22, tzinfo=UTC)
    both = {"card_id": "C00042", "merchant_id": "M00077", "threshold": 0.388}
    alert = {"transaction_id": "20180611-000123", "event_time": at, "score": 0.987, "severity": 407.14}
    allowed = {"transaction_id": "20180611-000124", "event_time": at + timedelta(seconds=108), "score": 0.012}
    said = label(
        at=datetime(2018, 6, 12, 9, tzinfo=UTC), known="legitimate", card_id="C00042",
        transaction_id=allowed["transaction_id"], analyst="dana", note="Customer called",
    )  # fmt: skip
    write(cluster, ALERTS, [message("alert", **both, **alert, amount=Decimal("412.50"))])
    write(cluster, DECISIONS, [message("decision", **both, **allowed, amount=Decimal("24.90"), action="allow")])
    write(cluster, LABELS, [said])
    stage.also = ("$ fraud-pipeline label",)
    stage.more["fraud-pipeline alerts"] = "--from-beginning --limit 1"
    stage.words["alerts on kafka-1:9092"] = f"{cluster.settings.topic('alerts')} on {cluster.bootstrap}"


def dead_letters(stage: Stage, cluster: Cluster) -> None:
    topic = cluster.settings.topic(TRANSACTIONS.name)
    values = [b"?", *(transaction(number, currency="XTS") for number in range(12))]
    ends_at = 8_841
    records = [
        Record(topic, 2, ends_at - 12 + number, microseconds(START) // 1_000, b"c1", value)
        for number, value in enumerate(values)
    ]
    rates = msgspec.structs.replace(RATES, version="2026-01")
    card = CardPartition(options(prefix=cluster.settings.topic_prefix)._replace(rates=rates), None, MemoryStore())
    for output in to(DEAD_LETTERS, card.process(records, START)):
        cluster.write(DEAD_LETTERS, output.value, output.key, START, output.headers, partition=0)
    cluster.flush()
    stage.words |= {"0/17": "0/12", "2026-03-01": f"{START:%Y-%m-%d}"}
    stage.typed = "y\n"


def held(stage: Stage, cluster: Cluster) -> None:
    one = example(held=True, label_source="customer")
    names = (f"t{number}" for number in range(1_250))
    write(cluster, EXAMPLES, (msgspec.json.encode(msgspec.structs.replace(one, transaction_id=name)) for name in names))


def models(stage: Stage, cluster: Cluster) -> None:
    held(stage, cluster)
    stage.call("simulate history.parquet --days 60 --cards 60 --merchants 120 --seed 0")
    train = "train history.parquet --trees 10 --budget-per-day 20 --force --known-before"
    stage.call(f"{train} 2018-05-10 --publish")
    stage.call(f"{train} 2018-05-20")
    stage.call(f"{train} 2018-05-30")
    registry = Registry(Settings().registry_path)
    first, rejected, second = (entry.version for entry in registry.entries(LIGHTGBM))
    writer = ControlWriter(cluster.bootstrap, cluster.settings)
    content = VersionToPublish(LIGHTGBM, rejected, registry.load(LIGHTGBM, rejected))
    writer.assess("rejected", writer.contents([content]), [], ModelChange(by="retrain", reason="It finds less."))
    stage.call(f"models promote {second} --by mona --reason 'It finds more.'")
    # The first digits alone: the page may name the others as it likes.
    stage.words |= {"0f4a": first, "9b1f": second, "2026-03-01T12:00": datetime.now(UTC).isoformat()}
    stage.figures = True
    hours = np.arange(48) * 3_600_000_000
    stage.names |= {"event_time_us": hours, "score": np.linspace(0, 1, 48), "threshold": 0.5}
    stage.names |= {"alert": stage.names["score"] >= 0.9, "case_id": [f"case-{hour}" for hour in range(48)]}


def data_scientist(stage: Stage, cluster: Cluster) -> None:
    stage.also = ("$ fraud-pipeline",)
    stage.more["fraud-pipeline simulate"] = "--cards 60 --merchants 120"


def replay(stage: Stage, cluster: Cluster) -> None:
    stage.set("FRAUD_PIPELINE_TIMESTAMPS", "producer")
    stage.call("simulate transactions.parquet --days 30 --cards 60 --merchants 120 --seed 0")
    day = simulate_days(make_profiles(np.random.default_rng(0), 5, 5), 0, 0, 1)
    event = threading.Event()

    def frames() -> Iterator[pd.DataFrame]:
        yield day.iloc[:3]
        event.set()

    stage.names |= {"settings": cluster.settings, "bootstrap": cluster.bootstrap, "event": event}
    stage.names |= {"frames": frames(), "models": active(), "options": options()}


def blocks(stage: Stage, cluster: Cluster) -> None:
    card, at = CardPartition(options(), None, MemoryStore()), datetime(2024, 4, 1, 12, tzinfo=UTC)
    before, after = (transaction(number, at, transaction_id=f"tx-{number}") for number in (0, 1))
    labels = LabelLog(partition=1)
    for _ in range(4):
        labels.append(label(0, at, transaction_id="tx-0"), at)
    card.process([Record(TRANSACTIONS.name, 1, 6, microseconds(at) // 1_000, b"c1", before)], at)
    batch = [Record(TRANSACTIONS.name, 1, 7, microseconds(at) // 1_000, b"c1", after)]
    (output,) = to(PROFILED, card.process([*batch, labels.records[3]], at))
    cluster.write(PROFILED, output.value, None, at, partition=0)
    cluster.flush()
    stage.words["2 41277"] = "0 0"


def rules(stage: Stage, cluster: Cluster) -> None:
    without_rules(stage, cluster)
    (stage.directory / "rules/card-testing.sql").write_bytes((ROOT / "examples/rules/card-testing.sql").read_bytes())
    FAMILIES["card testing"].frame(1, Size(2_500, 1_500, 56)).to_parquet(stage.directory / "world.parquet")
    stage.call("train world.parquet --known-before 2024-01-29 --budget-per-day 10 --force")


def rules_guide(stage: Stage, cluster: Cluster) -> None:
    without_rules(stage, cluster)
    (block,) = fenced((ROOT / stage.page).read_text(encoding="utf-8"), "sql")
    (stage.directory / "rules/several-times-usual.sql").write_text(block.content, encoding="utf-8")
    stage.also = ("$ fraud-pipeline simulate",)


def without_rules(stage: Stage, cluster: Cluster) -> None:
    cluster.publish()
    cluster.command("rules", "retire", "large-amount", "--reason", "The page begins without rules.", code=0)
    (stage.directory / "rules").mkdir()


def lists(stage: Stage, cluster: Cluster) -> None:
    cluster.publish()
    text = (ROOT / "docs/lists.md").read_text(encoding="utf-8")
    (stage.directory / "home.csv").write_text(text.split("```csv\n")[1].split("```")[0])


SCENES: dict[str, Callable[[Stage, Cluster], None]] = {
    "docs/analyst.md": desk,
    "docs/dead-letters.md": dead_letters,
    "docs/guides/analyst.md": desk,
    "docs/guides/data-scientist.md": data_scientist,
    "docs/guides/rules.md": rules_guide,
    "docs/lists.md": lists,
    "docs/models.md": models,
    "docs/operating.md": held,
    "docs/replay.md": replay,
    "docs/rules.md": rules,
    "docs/wire-contract.md": blocks,
}


@pytest.mark.parametrize("page", SCENES)
def test_programs_of_a_cluster_print_what_the_page_shows(
    page: str, kafka_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(page, tmp_path, monkeypatch)
    cluster = Cluster(kafka_settings)
    stage.set("KAFKA_BOOTSTRAP_SERVERS", cluster.bootstrap)
    stage.set("FRAUD_PIPELINE_TOPIC_PREFIX", kafka_settings.topic_prefix)
    SCENES[page](stage, cluster)
    assert stage.run() > 0
