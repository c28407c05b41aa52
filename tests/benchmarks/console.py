"""The console's database at its largest: how long topics take to be read into it, and pages to be read from it.

python -m tests.benchmarks.console --decisions 1000000 --cases 100000
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.broker import embedded_broker
from pipeline.console.store import CaseStore
from pipeline.console.views import QueueFilter
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.settings import Settings
from schemas.codec import encode
from schemas.messages import Message
from schemas.topics import ALERTS, DECISIONS
from tests.helpers.case_topics import KEY, alert_of, console, decision_of
from tests.helpers.topics import shared_producer

START = datetime(2026, 3, 1, tzinfo=UTC)
SPREAD_S = 20 * 86_400
LOOKS = 200


def template(message: Message) -> bytes:
    """JSON of a message with places for what differs: a message made for each record would take minutes."""
    return encode(message).replace(b"%", b"%%").replace(b"<", b"%(").replace(b">", b")b")


_PLACES: dict[str, Any] = {
    "alert_id": "alert-<n>", "case_id": "case-<c>", "card_id": "card-<c>", "transaction_id": "t<n>",
    "merchant_id": "shop-<m>", "selection": "<s>",
}  # fmt: skip
_ALERT = template(alert_of(0, **_PLACES)).replace(b'"severity":0.0', b'"severity":%(l)b')
_RAISED = template(decision_of(alert_of(0, **_PLACES)))
_PLAIN = template(decision_of(alert_of(0, **_PLACES), selection=None, features=None, action="allow"))
_TIME, _AT = b"2026-03-01T12:00:00Z", b"%(t)b"


def records(decisions: int, cases: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Topic, key and value of decisions, every so many of which has an alert; 1 in 20 of these is an audit."""
    chance = random.Random(seed)
    every, shops = decisions // cases, max(decisions // 100, 1)
    alert, raised, plain = (text.replace(_TIME, _AT) for text in (_ALERT, _RAISED, _PLAIN))
    assert all(b"%(t)b" in text for text in (alert, raised, plain))
    for number in range(decisions):
        case = number // every if number % every == 0 else chance.randrange(cases)
        at = START + timedelta(seconds=number * SPREAD_S // decisions)
        fields = {
            b"n": str(number), b"c": str(case), b"m": str(chance.randrange(shops)), b"t": f"{at:%Y-%m-%dT%H:%M:%SZ}",
            b"l": repr(chance.random() * 1_000), b"s": "audit" if chance.random() < 0.05 else "score",
        }  # fmt: skip
        values = {name: text.encode() for name, text in fields.items()}
        card_id = f"card-{case}"
        yield DECISIONS.name, card_id, (raised if number % every == 0 else plain) % values
        if number % every == 0:
            yield ALERTS.name, card_id, alert % values


def fill(settings: Settings, decisions: int, cases: int) -> None:
    """Write the records."""
    assert settings.kafka_bootstrap_servers is not None
    producer = shared_producer(settings.kafka_bootstrap_servers)
    for number, (topic, key, value) in enumerate(records(decisions, cases, 7)):
        while True:
            try:
                producer.produce(settings.topic(topic), value, key.encode())
            except BufferError:
                producer.poll(0.1)
            else:
                break
        if number % 1_000 == 0:
            producer.poll(0)
    assert producer.flush(300) == 0


def percentiles_ms(call: Callable[[int], object]) -> dict[str, float]:
    """Time a call many times, in milliseconds."""
    took = []
    for number in range(LOOKS):
        began_s = time.perf_counter()
        call(number)
        took.append(1_000 * (time.perf_counter() - began_s))
    return {f"p{share}": round(float(np.percentile(took, share)), 2) for share in (50, 95, 100)}


def looks(store: CaseStore, cases: int) -> dict[str, dict[str, float]]:
    """Time the reads of pages."""
    now_us = time.time_ns() // 1_000
    every = QueueFilter()
    chance = random.Random(3)
    return {
        "queue": percentiles_ms(lambda number: store.queue(every, now_us)),
        "queue, behind 50,000": percentiles_ms(lambda number: store.queue(every._replace(after=50_000), now_us)),
        "queue, by loss": percentiles_ms(lambda number: store.queue(every._replace(least_loss=500.0), now_us)),
        "queue, by text": percentiles_ms(lambda number: store.queue(every._replace(text=f"card-{number}"), now_us)),
        "next": percentiles_ms(lambda number: store.next_case(every, now_us)),
        "case": percentiles_ms(lambda number: store.case(f"case-{chance.randrange(cases)}", now_us)),
        "search": percentiles_ms(lambda number: store.queue(every._replace(text=f"t{number}", status="any"), now_us)),
        "figures": percentiles_ms(lambda number: store.figures()),
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as text, embedded_broker(Path(text) / "kafka") as broker:
        directory = Path(text)
        settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers, data_dir=directory)
        ensure_topics(broker.bootstrap_servers, settings)
        fill(settings, asked.decisions, asked.cases)
        began_s, used_s = time.perf_counter(), time.process_time()
        with console(settings, directory / "console.sqlite", KEY) as (store, _):
            figures = {
                "rebuilt_s": round(time.perf_counter() - began_s, 1),
                "processor_s": round(time.process_time() - used_s, 1),
                "open": store.figures().open_cases,
            }
            print(json.dumps(figures), flush=True)
            for name, taken in looks(store, asked.cases).items():
                print(json.dumps({name: taken}), flush=True)
            size = sum(path.stat().st_size for path in directory.glob("console.sqlite*"))
            print(json.dumps({"megabytes": round(size / 1e6)}))


if __name__ == "__main__":
    main()
