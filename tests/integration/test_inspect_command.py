"""``fraud-pipeline inspect`` against a real broker."""

import json

import pytest

from schemas.topics import PROFILED, TRANSACTIONS
from tests.helpers.logs import START, Log, profiled, transaction
from tests.helpers.topics import Cluster
from tests.unit.engine.test_engine_card import NOW, partition

pytestmark = pytest.mark.broker


def test_a_record_is_shown_and_what_is_not_there_is_said_in_a_sentence(cluster: Cluster) -> None:
    result = partition().process([Log(TRANSACTIONS).append(transaction())], NOW)
    (output,) = result.outputs
    (message,) = profiled(result, PROFILED)
    assert output.value is not None
    cluster.write(PROFILED, output.value, None, START, partition=1)
    cluster.write(TRANSACTIONS, transaction(3), b"c1", START, partition=2)
    cluster.flush()
    found = cluster.command("inspect", "profiled", "1", "0", code=0)
    header, row = map(json.loads, found.output.splitlines())
    assert (header["rows"], row["row"], row["transaction_id"]) == (1, 0, message.transaction_id)
    plain = cluster.command("inspect", "transactions", "2", "0")
    assert plain.output.encode().strip() == transaction(3)
    for arguments, sentence in (
        (("transactions", "2", "1"), "holds no committed record"),
        (("profiled", "1", "0", "1"), "and no row 1"),
        (("transactions", "9", "0"), "has partitions 0 to 2, and no partition 9"),
    ):
        refused = cluster.command("inspect", *arguments, code=1)
        assert sentence in refused.output
        assert len(refused.output.splitlines()) == 1
