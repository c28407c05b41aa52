"""Workers that die of a record, and workers that are killed: only what kills again and again is quarantined."""

import re
import time

import pytest

from pipeline.kafka.session.quarantine import decode_control
from schemas.messages import Quarantine
from schemas.topics import CONTROL, DEAD_LETTERS, PROFILED, PROGRESS
from tests.helpers.expected import differences, expected_features
from tests.helpers.logs import after
from tests.helpers.pages import shown
from tests.helpers.topics import Cluster, Starter, keys, once, shop

pytestmark = pytest.mark.broker

DYING = """
import os, signal
from agents.card import CardPartitions
from pipeline.cli import main

process = CardPartitions.process

def die(self, records, now):
    if any(b'"t31"' in (record.value or b"") for record in records):
        os.kill(os.getpid(), signal.SIGKILL)
    return process(self, records, now)

CardPartitions.process = die
main(["worker"])
"""
"""A worker whose card agent dies of one transaction, as of one for which there is not enough memory."""
DEATHS = (5, 6)
"""Batches as usual once or twice, a step, three times alone; and the one that sets it aside must live."""


def check(cluster: Cluster, bought: set[tuple[str, str]]) -> None:
    """One decision for each transaction, with the features that the recorded log gives."""
    decisions = cluster.decisions()
    assert once(decisions)
    assert set(keys(decisions)) == bought
    assert differences(cluster.features(), expected_features(cluster.read(PROFILED), cluster.read(PROGRESS))) == []


def quarantines(cluster: Cluster) -> list[Quarantine]:
    items = [decode_control(record.value or b"") for record in cluster.read(CONTROL)]
    return [item for item in items if isinstance(item, Quarantine)]


def test_a_record_that_kills_every_worker_is_quarantined_and_all_others_are_decided_once(
    cluster: Cluster, start: Starter
) -> None:
    cluster.publish()
    bought = set(shop(cluster, range(60), seed=1))
    cluster.flush()
    (killer,) = (key for key in bought if key[1] == "t31")
    worker, deaths, log = start(cluster.settings, "-c", DYING, agents="card"), 0, ""
    while "is quarantined" not in worker.output:
        if worker.process.poll() is not None:
            deaths, log = deaths + 1, log + worker.output
            assert deaths <= max(DEATHS), worker.output
            worker = start(cluster.settings, "-c", DYING, agents="card")
        time.sleep(0.05)
    assert deaths in DEATHS
    (page,) = shown("docs/operating.md", "card: transactions partition")
    log = re.sub(r"\d+", "N", (log + worker.output).replace(cluster.settings.topic_prefix, ""))
    assert [line for line in page.shown.splitlines() if re.sub(r"\d+", "N", line) not in log] == []
    assert worker.stop() == 0, worker.output
    (dead_letter,) = cluster.read(DEAD_LETTERS)
    assert dict(dead_letter.headers)["dead-letter-error"] == b"set_aside"
    assert b'"t31"' in (dead_letter.value or b"")
    (quarantine,) = quarantines(cluster)
    assert quarantine.error_type == "ProcessDied"
    assert quarantine.digest
    # A restore from the beginning skips it too.
    bought.add(cluster.buy(100, after(days=1)))
    cluster.flush()
    again = start(cluster.settings, "-c", DYING, agents="card,score", snapshot_url="")
    again.until(lambda: len(cluster.decisions()) >= len(bought) - 1)
    assert again.stop() == 0, again.output
    assert "died" not in again.output
    check(cluster, bought - {killer})
