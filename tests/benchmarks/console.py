"""The console at its largest: how long topics take to be read, pages to be read and rendered, and a pipeline beside it.

python -m tests.benchmarks.console --decisions 1000000 --cases 100000
export FRAUD_PIPELINE_FEATURES_FILE=tests/features.toml
python -m tests.benchmarks.console --beside --decisions 200000 --cases 100000
python -m tests.benchmarks.console --one-case
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, TopicPartition

from pipeline.broker.node import embedded_broker
from pipeline.console import case_pages, queue_pages
from pipeline.console.guard import RATE_PER_S
from pipeline.console.store import CaseStore
from pipeline.console.views import QueueFilter
from pipeline.demo.processes import settings_environment
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.settings import Settings
from schemas.codec import encode
from schemas.messages import Message
from schemas.topics import ALERTS, DECISIONS, TRANSACTIONS, Topic
from tests.helpers.case_topics import KEY, NOON, Fed, alert_of, console, decision_of, event_of, label_of
from tests.helpers.case_views import Answers
from tests.helpers.champion import policy, publish_champion, small_model
from tests.helpers.consoles import Client, served, stand_in_parts
from tests.helpers.logs import transaction
from tests.helpers.topics import shared_producer
from tests.helpers.worker import WORKER, inherited_environment

SPREAD_S = 20 * 86_400
LOOKS = 200
STEADY_RATE = 500
"""Transactions a second while pages are timed."""


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


def records(decisions: int, cases: int, seed: int, start: datetime) -> Iterator[tuple[str, str, bytes]]:
    """Topic, key and value of decisions, every so many of which has an alert; 1 in 20 of these is an audit."""
    chance = random.Random(seed)
    every, shops = decisions // cases, max(decisions // 100, 1)
    alert, raised, plain = (text.replace(_TIME, _AT) for text in (_ALERT, _RAISED, _PLAIN))
    assert all(b"%(t)b" in text for text in (alert, raised, plain))
    for number in range(decisions):
        case = number // every if number % every == 0 else chance.randrange(cases)
        at = start + timedelta(seconds=number * SPREAD_S // decisions)
        fields = {
            b"n": str(number), b"c": str(case), b"m": str(chance.randrange(shops)), b"t": f"{at:%Y-%m-%dT%H:%M:%SZ}",
            b"l": repr(chance.random() * 1_000), b"s": "audit" if chance.random() < 0.05 else "score",
        }  # fmt: skip
        values = {name: text.encode() for name, text in fields.items()}
        card_id = f"card-{case}"
        yield DECISIONS.name, card_id, (raised if number % every == 0 else plain) % values
        if number % every == 0:
            yield ALERTS.name, card_id, alert % values


def write(settings: Settings, found: Iterator[tuple[str, str, bytes]]) -> None:
    """Write records."""
    assert settings.kafka_bootstrap_servers is not None
    producer = shared_producer(settings.kafka_bootstrap_servers)
    for number, (topic, key, value) in enumerate(found):
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


def percentiles_ms(call: Callable[[int], object], looks: int = LOOKS, pause_s: float = 0.0) -> dict[str, float]:
    """Time a call many times, in milliseconds."""
    took = []
    for number in range(looks):
        began_s = time.perf_counter()
        call(number)
        took.append(1_000 * (time.perf_counter() - began_s))
        time.sleep(pause_s)
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


def say(**values: object) -> None:
    """Print figures as JSON."""
    print(json.dumps(values), flush=True)


def rebuilt(settings: Settings, decisions: int, cases: int) -> None:
    """Time how long a file takes to be made from topics, and reads of it."""
    write(settings, records(decisions, cases, 7, datetime(2026, 3, 1, tzinfo=UTC)))
    began_s, used_s = time.perf_counter(), time.process_time()
    path = settings.data_dir / "console.sqlite"
    with console(settings, path, KEY) as (store, _):
        say(
            rebuilt_s=round(time.perf_counter() - began_s, 1),
            processor_s=round(time.process_time() - used_s, 1),
            open=store.queue(QueueFilter(), 0).total,
        )
        for name, taken in looks(store, cases).items():
            say(**{name: taken})
        say(megabytes=round(sum(file.stat().st_size for file in path.parent.glob("console.sqlite*")) / 1e6))


# --- A case of thousands of alerts -----------------------------------------------------------------------------------


def one_case(directory: Path, alerts: int = 5_000, notes: int = 1_000) -> None:
    """Time what one more record of a large case costs, and its page."""
    fed = Fed(directory / "console.sqlite")
    made = [alert_of(number, 1, event_time=NOON, raised_at=NOON) for number in range(alerts + LOOKS)]
    fed.feed(*made[:alerts], *map(decision_of, made[:alerts]))
    fed.feed(*(event_of(made[0], "noted", note=f"note {number}") for number in range(notes)))
    say(alert=percentiles_ms(lambda number: fed.feed(made[alerts + number])))
    say(decision=percentiles_ms(lambda number: fed.feed(decision_of(made[alerts + number]))))
    say(label=percentiles_ms(lambda number: fed.feed(label_of(made[number]))))
    say(note=percentiles_ms(lambda number: fed.feed(event_of(made[0], "noted", note="one more")), 50))
    answers = Answers()
    parts = stand_in_parts(directory / "accounts", store=fed.store, explainer=answers, status=answers)
    with served(parts, routes=[*queue_pages.ROUTES, *case_pages.ROUTES]) as running:
        client = running.signed_in("supervisor")
        say(page=percentiles_ms(lambda number: client.get("/cases/case-1"), 20))


# --- A pipeline beside it --------------------------------------------------------------------------------------------


class Ends:
    """Counts records of a topic by its offsets, the marks of transactions among them."""

    def __init__(self, settings: Settings, topic: Topic) -> None:
        config = {"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": "ends"}
        self._consumer, self._topic = Consumer(config), settings.topic(topic.name)
        self._partitions = range(settings.card_partitions)

    def now(self) -> int:
        parts = (TopicPartition(self._topic, number) for number in self._partitions)
        return sum(self._consumer.get_watermark_offsets(part, timeout=30)[1] for part in parts)

    def reached(self, wanted: int) -> bool:
        return self.now() >= wanted


@contextmanager
def process(settings: Settings, directory: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a command beside; what it says is in the file."""
    log = directory / f"{arguments[-1].strip('-')}.log"
    environment = {**inherited_environment(), **settings_environment(settings)}
    with log.open("wb") as sink:
        found = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=sink, stderr=subprocess.STDOUT)
    try:
        yield found, log
    finally:
        found.send_signal(signal.SIGCONT)
        found.terminate()
        found.wait()


def waited(condition: Callable[[], bool], limit_s: float = 900.0) -> float:
    """Wait for a condition; return the seconds that it took."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < limit_s
        time.sleep(0.02)
    return time.monotonic() - began_s


class Traffic:
    """Transactions of now, each once."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._next, self._chance = settings, 0, random.Random(9)

    def send(self, count: int) -> None:
        write(self._settings, self._made(count))

    def _made(self, count: int) -> Iterator[tuple[str, str, bytes]]:
        at = datetime.now(UTC)
        for number in range(self._next, self._next + count):
            card_id = f"live-{self._chance.randrange(5_000)}"
            shop = f"shop-{self._chance.randrange(500)}"
            yield TRANSACTIONS.name, card_id, transaction(number, at, card_id=card_id, merchant_id=shop)
        self._next += count


def console_has(data_dir: Path) -> int:
    """Decisions that a console has read, by offset."""
    with closing(sqlite3.connect(data_dir / "console.sqlite", timeout=30)) as database:
        ((behind,),) = database.execute("SELECT coalesce(sum(behind), 0) FROM positions WHERE topic = 'decisions'")
    return int(behind)


def signed_in(log: Path) -> Client:
    """Open the link that a console printed."""
    waited(lambda: b"The console serves" in log.read_bytes())
    link = next(line for line in log.read_text().splitlines() if "/link/" in line and line.startswith("http"))
    client = Client(int(link.split(":")[2].partition("/")[0]))
    assert client.post(link[link.index("/link/") :]).status == 303
    client.get("/account")
    return client


def pages(client: Client, cases: int, count: int) -> dict[str, dict[str, float]]:
    """Time pages over HTTP, each with a new connection."""
    chance = random.Random(4)

    def fetched(path: str) -> None:
        assert client.get(path).status == 200, path

    def pressed() -> None:
        answer = client.post("/next", {"event_id": os.urandom(16).hex()})
        assert answer.status == 303, answer.text
        assert client.get(answer.headers["location"]).status == 200

    return {
        "queue": percentiles_ms(lambda _: fetched("/"), count),
        "case": percentiles_ms(lambda _: fetched(f"/cases/case-{chance.randrange(cases)}"), count),
        "next and its case": percentiles_ms(lambda _: pressed(), count, 1.1 / RATE_PER_S),
    }


def beside(settings: Settings, directory: Path, decisions: int, cases: int, rounds: int, backlog: int) -> None:
    """Time pages while a worker runs, and the worker's rate with a console that follows and one that stands still."""
    assert settings.kafka_bootstrap_servers is not None
    publish_champion(settings.kafka_bootstrap_servers, settings, small_model(), policy(0.999))
    decided, traffic = Ends(settings, DECISIONS), Traffic(settings)
    desk = settings.model_copy(update={"data_dir": directory / "desk"})
    with process(settings, directory, *WORKER) as (worker, _):
        traffic.send(1_000)
        waited(lambda: decided.now() >= 1_000)
        write(settings, records(decisions, cases, 7, datetime.now(UTC) - timedelta(seconds=SPREAD_S + 3_600)))
        with process(desk, directory, "-m", "pipeline.cli", "console", "--port", "0") as (following, log):
            client = signed_in(log)
            say(console_caught_up_s=round(waited(lambda: client.get("/healthz").status == 200), 1))
            ended = threading.Event()

            def steadily() -> None:
                while not ended.wait(0.1):
                    traffic.send(STEADY_RATE // 10)

            say(**{"pages, pipeline idle": pages(client, cases, LOOKS)})
            sender = threading.Thread(target=steadily)
            sender.start()
            before, began_s = decided.now(), time.monotonic()
            found = pages(client, cases, LOOKS)
            rate = (decided.now() - before) / (time.monotonic() - began_s)
            ended.set()
            sender.join()
            say(load=os.getloadavg(), decisions_per_s=round(rate), **{f"pages at {STEADY_RATE}/s": found})
            rates: dict[str, list[float]] = {"console": [], "no console": []}
            for number in range(2 * rounds):
                # In turn, and which is first in turn too.
                kind = ("console", "no console")[(number + number // 2) % 2]
                waited(lambda: console_has(desk.data_dir) >= decided.now())
                if kind == "no console":
                    following.send_signal(signal.SIGSTOP)
                wanted, began_s = decided.now() + backlog, time.monotonic()
                traffic.send(backlog)
                waited(partial(decided.reached, wanted))
                rates[kind].append(backlog / (time.monotonic() - began_s))
                following.send_signal(signal.SIGCONT)
                assert worker.poll() is None
                say(kind=kind, rate=round(rates[kind][-1]), load=os.getloadavg()[0])
            medians = {kind: statistics.median(found) for kind, found in rates.items()}
            say(medians=medians, ratio=round(medians["console"] / medians["no console"], 3))


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--beside", action="store_true", help="pages over HTTP, and a worker's rate")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--backlog", type=int, default=60_000)
    parser.add_argument("--one-case", action="store_true", help="a case of 5,000 alerts and 1,000 notes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        if asked.one_case:
            one_case(directory)
            return
        with embedded_broker(directory / "kafka") as broker:
            settings = Settings(
                kafka_bootstrap_servers=broker.bootstrap_servers, data_dir=directory / "data", metrics_port=0
            )
            ensure_topics(broker.bootstrap_servers, settings)
            if asked.beside:
                beside(settings, directory, asked.decisions, asked.cases, asked.rounds, asked.backlog)
            else:
                rebuilt(settings, asked.decisions, asked.cases)


if __name__ == "__main__":
    main()
