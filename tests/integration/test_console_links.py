"""Values that link cases, read from ``profiled`` behind everything else."""

from pathlib import Path

import msgspec
import pytest

from pipeline.console.links import LinkReader
from pipeline.settings import Settings
from schemas.messages import LogPosition, ProfiledTransaction
from schemas.topics import PROFILED
from tests.helpers.case_topics import NOON, alert_of, console, publish
from tests.helpers.logs import block_of, golden, microseconds
from tests.helpers.topics import Cluster
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.broker


def profiled(number: int, **texts: object) -> ProfiledTransaction:
    original = {"transaction_id": f"t{number}", "amount": 1, "currency": "EUR", "event_time": NOON, **texts}
    return golden(
        "profiled-transaction-full", ProfiledTransaction, transaction=msgspec.Raw(msgspec.json.encode(original))
    )


def linked(settings: Settings, path: Path) -> list[tuple[str, str, str]]:
    assert settings.kafka_bootstrap_servers is not None
    with console(settings, path) as (store, _):
        links = LinkReader(settings.kafka_bootstrap_servers, settings, store, lambda _: None)
        links.start()
        try:
            eventually(lambda: store.unlinked_alerts(10) == [])
        finally:
            links.stop()
        view = store.case("case-1", microseconds(NOON))
        return [(link.field, link.value, link.case_id) for link in view.links]


def test_cases_are_linked_by_texts_of_their_transactions_and_not_by_dropped_ones(
    cluster: Cluster, tmp_path: Path
) -> None:
    rows = [profiled(n, device_id=7 if n < 3 else 8, ip="10.0.0.1", account_id=f"a{n}") for n in (1, 2, 3)]
    cluster.write(PROFILED, block_of(*rows[:1]), None, NOON, partition=0)
    cluster.write(PROFILED, block_of(*rows[1:]), None, NOON, partition=0)
    cluster.flush()
    places = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (7, 0), 5: (1, 9)}
    publish(
        cluster.settings,
        *(
            alert_of(number, merchant_id=f"m{number}", log=LogPosition(partition=0, offset=offset, row=row))
            for number, (offset, row) in places.items()
        ),
    )
    assert linked(cluster.settings, tmp_path / "all.sqlite") == [
        ("device_id", "7", "case-2"), ("ip", "10.0.0.1", "case-2"), ("ip", "10.0.0.1", "case-3"),
    ]  # fmt: skip
    dropping = cluster.settings.model_copy(update={"dropped_fields": "ip"})
    assert linked(dropping, tmp_path / "dropped.sqlite") == [("device_id", "7", "case-2")]
