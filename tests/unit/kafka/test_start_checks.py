"""The checks at a start run at once, and report in the order in which they are listed."""

import threading
from collections.abc import Sequence

import pytest

from agents.topology import AGENTS
from pipeline.kafka.checks import startup
from pipeline.kafka.checks.startup import CheckResult, Cluster, Role, StartRefused, check_start
from pipeline.settings import Settings
from tests.helpers.waiting import TIMEOUT_S

CHECKS = ("partitions", "retention", "timestamps", "replication", "offsets", "kernel")
ROLES = tuple(AGENTS.values())


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "admin_client", lambda *_, **__: object())
    monkeypatch.setattr(startup, "brokers", lambda _client: [1])


def test_all_checks_run_at_once_and_report_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody passes before all have come.
    together = threading.Barrier(len(CHECKS), timeout=TIMEOUT_S)
    ended = {name: threading.Event() for name in CHECKS}

    def check(name: str, number: int, cluster: Cluster, roles: Sequence[Role]) -> CheckResult:
        del cluster, roles
        together.wait()
        # The last one ends first.
        if number + 1 < len(CHECKS):
            assert ended[CHECKS[number + 1]].wait(TIMEOUT_S)
        ended[name].set()
        return CheckResult([f"problem of {name}"], [])

    for number, name in enumerate(CHECKS):
        monkeypatch.setattr(
            startup, f"check_{name}", lambda cluster, roles, at=(name, number): check(*at, cluster, roles)
        )
    with pytest.raises(StartRefused) as refused:
        check_start("127.0.0.1:1", Settings(), ROLES)
    assert str(refused.value).splitlines() == [f"problem of {name}" for name in CHECKS]


def test_the_groups_are_looked_at_together_and_reported_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(len(ROLES), timeout=TIMEOUT_S)

    def offsets_of(cluster: Cluster, role: Role) -> startup.OffsetFindings:
        del cluster
        together.wait()
        return startup.OffsetFindings([f"{role.name} lost"], [f"{role.name} beyond"], [], [f"{role.name} warned"])

    monkeypatch.setattr(startup, "offset_findings", offsets_of)
    monkeypatch.setattr(startup, "RECHECK_S", 0.0)
    cluster = Cluster("127.0.0.1:1", Settings(accept_lost_records=True), startup.admin_client(""))
    found = startup.check_offsets(cluster, ROLES)
    assert found.problems == [f"{role.name} beyond" for role in ROLES]
    assert found.warnings == [f"{role.name} {word}" for word in ("lost", "warned") for role in ROLES]
