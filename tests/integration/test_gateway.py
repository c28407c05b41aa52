"""The gateway on a real broker: every raw message once, with its token, whatever becomes of a gateway."""

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.records.inflation import MOST_BATCH_BYTES
from pipeline.kafka.session.gateway import Gateway, GatewayError, Tokenised
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.protection.tokens import Tokeniser, TokenKeys
from schemas.mapping import Mapper
from schemas.topics import DEAD_LETTERS, TRANSACTIONS, Topic
from tests.contract.records import RATES
from tests.helpers.batches import produce_batch, record_batch
from tests.helpers.logs import START, microseconds, transaction
from tests.helpers.mappings import core, foreign
from tests.helpers.topics import Cluster

pytestmark = pytest.mark.broker

RAW = Topic("raw", "any", bytes, "producers", "cards")
CARDS = 7
MESSAGES = 60


def test_every_message_is_written_once_with_its_token(cluster: Cluster, tmp_path: Path) -> None:
    settings = cluster.settings.model_copy(update={"batch_max_records": 10})
    ensure_topics(cluster.bootstrap, settings, [RAW])
    raw = settings.topic(RAW.name)
    with RecordProducer(cluster.bootstrap, settings) as producer:
        for number in range(MESSAGES):
            value = {"transaction_id": f"t{number}", "card_id": f"card-{number % CARDS}", "amount": 1}
            producer.produce(raw, b"%d" % number, json.dumps(value).encode(), 1_000 + number)
        producer.produce(raw, b"card-1", b'{"card_id":"card-1"', 1_000)
    # The topic is anybody's, as those of the pipeline's producers are.
    produce_batch(cluster.bootstrap, raw, 0, record_batch([b"0" * 2 * MOST_BATCH_BYTES], "gzip"))
    with TokenKeys(tmp_path / "tokens.sqlite", b"s" * 32) as keys:
        tokeniser = Tokeniser(keys)

        def run(until: int) -> Tokenised:
            gateway, stop = Gateway(cluster.bootstrap, settings, RAW.name, TRANSACTIONS, tokeniser), threading.Event()

            def progress(done: Tokenised) -> None:
                if done.written + done.refused >= until:
                    stop.set()

            gateway.run(stop, progress)
            return gateway.done

        first = run(1)
        second = run(MESSAGES + 2 - first.written - first.refused)
        assert first.written + second.written == MESSAGES
        assert second.written > 0
        tokens = {f"card-{number}": tokeniser.token("card_id", f"card-{number}") for number in range(CARDS)}
    written = cluster.read(TRANSACTIONS)
    found = Counter(json.loads(record.value or b"")["transaction_id"] for record in written)
    assert found == Counter(f"t{number}" for number in range(MESSAGES))
    for record in written:
        message = json.loads(record.value or b"")
        assert message["card_id"] == tokens[f"card-{int(message['transaction_id'][1:]) % CARDS}"]
        assert record.key == message["card_id"].encode()
    letters = cluster.read(DEAD_LETTERS)
    assert {(letter.key, letter.value) for letter in letters} == {(None, None)}
    headers = [dict(letter.headers) for letter in letters]
    assert sorted((found["dead-letter-stage"], found["dead-letter-error"]) for found in headers) == [
        (b"tokenise", b"not_json"), (b"tokenise", b"unreadable"),
    ]  # fmt: skip


def test_a_gateway_does_not_read_a_topic_of_the_pipeline(cluster: Cluster, tmp_path: Path) -> None:
    with (
        TokenKeys(tmp_path / "tokens.sqlite", b"s" * 32) as keys,
        pytest.raises(GatewayError, match="is a topic of the pipeline"),
    ):
        Gateway(cluster.bootstrap, cluster.settings, "transactions", TRANSACTIONS, Tokeniser(keys))


def test_records_of_another_shape_are_mapped_before(cluster: Cluster, tmp_path: Path) -> None:
    ensure_topics(cluster.bootstrap, cluster.settings, [RAW])
    with RecordProducer(cluster.bootstrap, cluster.settings) as producer:
        value = foreign(transaction(1, START, card_id="card-1"))
        for item in (b'{"card_id":"4111","cvv":"123","n":1e99999999999999999999}', b'{"payload":1}', value):
            producer.produce(cluster.settings.topic(RAW.name), b"one", item, microseconds(START) // 1_000)
    with TokenKeys(tmp_path / "tokens.sqlite", b"s" * 32) as keys:
        tokeniser, stop = Tokeniser(keys), threading.Event()
        mapper = Mapper(core(), RATES)
        gateway = Gateway(cluster.bootstrap, cluster.settings, RAW.name, TRANSACTIONS, tokeniser, mapper)
        gateway.run(stop, lambda done: stop.set() if done.written + done.refused == 3 else None)
        token = tokeniser.token("card_id", "card-1")
    (record,) = cluster.read(TRANSACTIONS)
    message = json.loads(record.value or b"")
    assert (record.key, message["card_id"], message["transaction_id"]) == (token.encode(), token, "t1")
