"""The card agent's kernel: what it accepts, refuses, remembers, and lets through to the merchants."""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.engine.cards import pending as pending_module
from pipeline.engine.cards.card_batch import process_together
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.accepted_labels import accept
from pipeline.engine.records.forwarding import forward
from pipeline.engine.records.results import KEPT_BYTES, Result
from pipeline.features.catalogue import CARD_FEATURES, KERNEL_VERSION
from schemas.codec import MAX_VALUE_BYTES
from schemas.messages import ProfiledLabel, ProfiledTransaction, RecordPosition
from schemas.records import Headers, Output, Record
from schemas.times import US_PER_DAY, US_PER_SECOND
from schemas.topics import ACCEPTED_LABELS, DEAD_LETTERS, PROFILED, TRANSACTIONS
from tests.contract.records import RATES
from tests.helpers.logs import (
    LABEL_OPTIONS,
    START,
    LabelLog,
    Log,
    after,
    label,
    microseconds,
    profiled,
    reason,
    to,
    transaction,
)

NOW = after(hours=1)
HORIZON_DAYS = 120.0


def options(
    dedup_days: float = HORIZON_DAYS, label_days: float = HORIZON_DAYS, prefix: str = "", partitions: int = 1
) -> CardOptions:
    return CardOptions(
        rates=RATES,
        future_tolerance_us=300 * US_PER_SECOND,
        deduplication_us=round(dedup_days * US_PER_DAY),
        label_grace_us=round(label_days * US_PER_DAY),
        partitions=partitions,
        topic_prefix=prefix,
    )


def partition(*args: Any, store: MemoryStore | None = None, **changes: Any) -> CardPartition:
    return CardPartition(options(*args, **changes), None, store or MemoryStore())


class Desk:
    """A partition with its two topics; every call is a batch of its own."""

    def __init__(self, **options: Any) -> None:
        self.store = MemoryStore()
        self.state = partition(store=self.store, **options)
        self.transactions, self.labels = Log(TRANSACTIONS), LabelLog()

    def work(self, records: Sequence[Record]) -> Result:
        result = self.state.process(records, NOW)
        self.state.commit()
        return result

    def buy(self, number: int, at: datetime = START, arrived: datetime | None = None, **changes: Any) -> Result:
        record = self.transactions.append(transaction(number, at, **changes), arrived or at)
        return self.work([record])

    def say(
        self, number: int, at: datetime, known: str = "fraud", arrived: datetime | None = None, **changes: Any
    ) -> Result:
        record = self.labels.append(label(number, at, known, **changes), arrived or at)
        return self.work([record])


def bought(result: Result) -> list[ProfiledTransaction]:
    return [message for message in profiled(result, PROFILED) if isinstance(message, ProfiledTransaction)]


def values_of(packed: bytes) -> list[float]:
    return np.frombuffer(packed, "<f8").tolist()


def followed(result: Result) -> list[tuple[str, str, int]]:
    """(transaction, what is known, since when) of the labels that travel on."""
    return [
        (message.transaction_id, message.known, message.known_at_us)
        for message in profiled(result, PROFILED)
        if isinstance(message, ProfiledLabel)
    ]


def everything(result: Result) -> tuple[Any, ...]:
    return result.outputs, result.counts


def test_dropped_fields_are_not_profiled_and_decide_nothing() -> None:
    whole, slim = partition(), partition()
    slim_options = options()._replace(dropped_fields=frozenset({"ip", "device_id", "note"}))
    transactions, labels = Log(TRANSACTIONS), LabelLog()
    fields = {"ip": "10.0.0.1", "device_id": "d-1", "channel": "pos"}
    records = [
        transactions.append(transaction(1, START, **fields), START),
        labels.append(label(1, after(1), note="called the card holder"), after(1)),
    ]
    found = []
    for state, given in ((whole, options()), (slim, slim_options)):
        found.append(profiled(process_together([(state.kernels, records)], NOW, given), PROFILED))
        state.commit()
    (full, label_), (less, label_less) = found
    assert isinstance(full, ProfiledTransaction)
    assert isinstance(less, ProfiledTransaction)
    assert isinstance(label_, ProfiledLabel)
    assert isinstance(label_less, ProfiledLabel)
    assert msgspec.json.decode(less.transaction) == {
        name: value for name, value in msgspec.json.decode(full.transaction).items() if name not in fields
    } | {"channel": "pos"}
    assert b"called" in bytes(label_.label)
    assert b"called" not in bytes(label_less.label)
    assert msgspec.structs.replace(less, transaction=full.transaction) == full
    assert slim.digest() == whole.digest()


def test_an_accepted_transaction_is_profiled() -> None:
    log = Log(TRANSACTIONS, partition=3)
    log.append(b"not json")
    value = transaction(7, after(hours=9, minutes=30), amount=5, currency="USD", transaction_type="refund", extra=[1])
    record = log.append(value, after(hours=9, minutes=31))
    result = partition(partitions=4).process([record], NOW)
    (output,) = result.outputs
    assert (output.topic, output.key, output.headers, output.partition) == (PROFILED, None, (), 0)
    (message,) = bought(result)
    assert (message.transaction_id, message.card_id, message.merchant_id) == ("t7", "c1", "m1")
    assert message.event_time_us == microseconds(after(hours=9, minutes=30))
    assert message.amount_base_minor == RATES.currencies["USD"].to_base_minor(500) != 500
    assert message.rates_version == RATES.version
    assert message.counts is False
    assert message.source == RecordPosition(topic="transactions", partition=3, offset=1)
    assert message.ingested_at == NOW
    assert message.kernel == KERNEL_VERSION
    assert bytes(message.transaction) == value
    features = dict(zip(CARD_FEATURES, values_of(message.card_features), strict=True))
    assert features["amount"] == message.amount_base_minor / 100
    assert (features["hour"], features["weekday"]) == (9.5, 4)
    assert features["card_count_30d"] == 0
    assert np.isnan(features["card_mean_30d"])
    assert result.counts == {("accepted", ""): 1}


def test_a_source_is_named_without_the_prefix() -> None:
    record = Record("blue-transactions", 0, 0, microseconds(START) // 1_000, b"c1", transaction(), ())
    (message,) = bought(partition(prefix="blue-").process([record], NOW))
    assert message.source.topic == "transactions"


REFUSED_TRANSACTIONS: dict[str, bytes | None] = {
    "null_value": None,
    "too_large": transaction(1, note="x" * MAX_VALUE_BYTES),
    "not_utf8": transaction(1, note="here").replace(b"here", b"\xff"),
    "not_json": transaction(1)[:-1],
    "too_deep": transaction(1).replace(b"{", b'{"deep": ' + b"[" * 70 + b"]" * 70 + b", ", 1),
    "too_many_fields": transaction(1, attributes={f"k{number}": "x" for number in range(1_000)}),
    "missing_field": transaction(1, merchant_id=None),
    "wrong_type": transaction(1, card_id=17),
    "invalid_value": transaction(1, transaction_id=""),
    "currency_unknown": transaction(1, currency="XXX"),
    "amount_negative": transaction(1, amount=-1),
    "amount_not_finite": transaction(1, amount="NaN"),
    "amount_too_large": transaction(1, amount=10**12),
    "amount_too_many_decimals": transaction(1, amount=1.001),
    "amount_zero": transaction(1, amount=0),
    "event_time_impossible": transaction(1, event_time="1970-01-01T00:00:00Z"),
    "event_time_in_future": transaction(1, after(minutes=6)),
}


@pytest.mark.parametrize("code", REFUSED_TRANSACTIONS)
def test_a_refused_transaction_becomes_a_dead_letter_and_leaves_no_trace(code: str) -> None:
    headers = (("trace", b"abc"), ("empty", None), ("trace", b"again"))
    with_it, without = Log(TRANSACTIONS, partition=3), Log(TRANSACTIONS, partition=3)
    with_it.append(transaction(0))
    bad = with_it.append(REFUSED_TRANSACTIONS[code], START, b"its key", headers)
    with_it.append(transaction(1))
    without.append(transaction(0))
    without.append(None)
    without.append(transaction(1))
    result = partition(partitions=4).process(with_it.records, NOW)

    (dead,) = to(DEAD_LETTERS, result)
    assert (dead.key, dead.value) == (b"its key", None if code == "too_large" else bad.value)
    assert dead.headers[:3] == headers
    assert reason(dead, "error") == code
    assert reason(dead, "stage") == "card"
    assert [reason(dead, name) for name in ("topic", "partition", "offset")] == ["transactions", "3", "1"]
    assert reason(dead, "timestamp-ms") == str(bad.timestamp_ms)
    assert len(reason(dead, "message")) > 10
    assert result.counts == {("accepted", ""): 2, ("dead_letter", code): 1}
    good = partition(partitions=4).process([without.records[0], without.records[2]], NOW)
    assert bought(result) == bought(good)
    assert len(bought(good)) == 2
    assert len(good.outputs) == 1


CHANGES: dict[str, object] = {
    "merchant_id": "another",
    "amount": 9_999.0,
    "currency": "USD",
    "transaction_type": "cash",
    "event_time": after(minutes=1).isoformat(),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_repeat_that_says_something_else_becomes_a_dead_letter_that_names_both(field: str) -> None:
    desk = Desk()
    desk.buy(0)
    desk.buy(1)
    assert desk.buy(1).counts == {("duplicate", ""): 1}
    result = desk.buy(1, **{field: CHANGES[field]})
    (dead,) = result.outputs
    assert dead.value == desk.transactions.records[3].value
    assert (reason(dead, "error"), reason(dead, "offset")) == ("repeat_differs", "3")
    assert (reason(dead, "first-partition"), reason(dead, "first-offset")) == ("0", "1")
    assert "'t1'" in reason(dead, "message")
    assert result.counts == {("dead_letter", "repeat_differs"): 1}
    # The first one holds, and a field that decides nothing may differ.
    assert desk.buy(1).counts == desk.buy(1, note="sent again").counts == {("duplicate", ""): 1}


def test_a_repeat_within_its_batch_is_compared_too() -> None:
    log = Log(TRANSACTIONS)
    log.append(transaction(1))
    log.append(transaction(1, amount=1))
    log.append(transaction(1))
    result = partition().process(log.records, NOW)
    assert len(bought(result)) == 1
    (dead,) = to(DEAD_LETTERS, result)
    assert (reason(dead, "offset"), reason(dead, "first-offset")) == ("1", "0")
    assert result.counts == {("accepted", ""): 1, ("duplicate", ""): 1, ("dead_letter", "repeat_differs"): 1}


def test_the_reason_of_a_dead_letter_is_bounded_and_encodable() -> None:
    record = Record("transactions", 0, 0, 0, None, b"x", ())
    result = Result()
    result.dead_letter(record, "card", "code", "\ud800" + "y" * 5_000)
    assert reason(result.outputs[0], "message") == "\\ud800" + "y" * 999


def test_a_dead_letter_fits_whatever_the_size_of_its_record() -> None:
    value, key = b"A" * (KEPT_BYTES + 1), b"k" * (KEPT_BYTES + 1)
    trace: Headers = (("trace", b"abc"),)

    def dead(record: Record) -> Output:
        result = Result()
        result.dead_letter(record, "card", "too_large", "it is too large")
        (output,) = result.outputs
        assert reason(output, "offset") == "7"
        size_bytes = len(output.key or b"") + len(output.value or b"")
        assert size_bytes + sum(len(name) + len(content or b"") for name, content in output.headers) < 2 * KEPT_BYTES
        return output

    whole = dead(Record("transactions", 0, 7, 0, b"c1", value[:-4], ()))
    assert (whole.key, whole.value) == (b"c1", value[:-4])
    without = dead(Record("transactions", 0, 7, 0, b"c1", value, trace))
    assert (without.key, without.value, without.headers[0]) == (b"c1", None, trace[0])
    assert reason(without, "value-bytes") == str(len(value))
    assert reason(without, "value-sha256") == hashlib.sha256(value).hexdigest()
    neither = dead(Record("transactions", 0, 7, 0, key, b"v", trace))
    assert (neither.key, neither.value) == (None, None)
    assert reason(neither, "key-sha256") == hashlib.sha256(key).hexdigest()
    assert reason(neither, "headers") == "1"
    heavy = dead(Record("transactions", 0, 7, 0, None, None, (("trace", value),)))
    assert (heavy.key, heavy.value, reason(heavy, "headers")) == (None, None, "1")


def test_amounts_are_looked_at_for_decimals_but_not_in_a_replay() -> None:
    log = Log(TRANSACTIONS)
    asked = [("12.34", "EUR"), ("12.00", "EUR"), ("7", "EUR"), ("1999", "JPY")]
    records = [log.append(transaction(n, amount=amount, currency=code)) for n, (amount, code) in enumerate(asked)]
    assert partition().process(records, NOW).amounts == {("EUR", True): 1, ("EUR", False): 2}
    assert partition().process(records, None).amounts == {}


def test_a_repeat_emits_nothing_and_enters_no_window() -> None:
    log = Log(TRANSACTIONS)
    first = [log.append(transaction(0)), log.append(transaction(0)), log.append(transaction(1))]
    later = [log.append(transaction(1)), log.append(transaction(2))]
    state = partition()
    result = state.process(first, NOW)
    assert [message.source.offset for message in bought(result)] == [0, 2]
    assert result.counts == {("accepted", ""): 2, ("duplicate", ""): 1}
    result = state.process(later, NOW)
    (message,) = bought(result)
    assert message.transaction_id == "t2"
    assert values_of(message.card_features)[CARD_FEATURES.index("card_count_1d")] == 2
    assert values_of(message.card_features)[CARD_FEATURES.index("card_sum_1d")] == 24.68
    assert result.counts["duplicate", ""] == 1


def test_a_transaction_is_a_repeat_only_of_its_own_card_and_within_the_horizon() -> None:
    desk = Desk(dedup_days=10)
    assert bought(desk.buy(0))
    assert bought(desk.buy(0, card_id="c2"))
    assert not bought(desk.buy(0, after(10)))
    assert bought(desk.buy(1, after(10)))
    assert not bought(desk.buy(0, after(10)))
    assert bought(desk.buy(2, after(10, microseconds=1)))
    assert bought(desk.buy(0, after(10)))
    assert not bought(desk.buy(0, after(10)))


def test_the_horizon_counts_event_time_not_arrival() -> None:
    desk = Desk(dedup_days=10)
    desk.buy(0, arrived=after(50))
    assert not bought(desk.buy(0, arrived=after(90)))


def test_what_is_forgotten_of_old_days_is_no_repeat_and_recent_ones_still_are() -> None:
    desk = Desk(dedup_days=10, label_days=10)
    for day in range(60):
        assert bought(desk.buy(day, after(day)))
    assert sum(key[:1] == b"t" for key in desk.store.items()) <= 10 + 2 * 7 + 2
    assert not bought(desk.buy(59, after(59)))
    assert bought(desk.buy(0))


def test_a_case_gathers_a_day_of_a_card() -> None:
    desk = Desk()
    cases = [
        (message.case_id, message.case_sequence)
        for hours, card in ((0, "c1"), (23.9, "c1"), (23.9, "c2"), (24, "c1"), (25, "c1"), (26, "c2"), (80, "c1"))
        for message in bought(desk.buy(int(hours * 10), after(hours=hours), card_id=card))
    ]
    start_s = int(START.timestamp())
    day_s, hour_s = 86_400, 3_600
    assert cases == [
        (f"c1-{start_s}", 1),
        (f"c1-{start_s}", 2),
        (f"c2-{start_s + 239 * hour_s // 10}", 1),
        (f"c1-{start_s + day_s}", 1),
        (f"c1-{start_s + day_s}", 2),
        (f"c2-{start_s + 239 * hour_s // 10}", 2),
        (f"c1-{start_s + 80 * hour_s}", 1),
    ]


def test_a_label_follows_its_transaction_to_the_merchant() -> None:
    desk = Desk()
    desk.buy(3, after(hours=2), merchant_id="m9")
    value = label(3, after(1), note="called the customer", unknown_field=1)
    record = desk.labels.append(value, after(1))
    result = desk.state.process([record], NOW)
    (message,) = profiled(result, PROFILED)
    assert isinstance(message, ProfiledLabel)
    assert (message.transaction_id, message.card_id, message.merchant_id) == ("t3", "c1", "m9")
    assert message.event_time_us == microseconds(after(hours=2))
    assert (message.known, message.known_at_us) == ("fraud", microseconds(after(1)))
    assert message.source == RecordPosition(topic="labels", partition=0, offset=0)
    assert bytes(message.label) == value
    assert result.counts == {("label", "first"): 1}


def test_only_what_changes_knowledge_travels() -> None:
    desk = Desk()
    desk.buy(0)
    steps: list[tuple[float, str, str, str, str | None]] = [
        (1.0, "disputed", "customer", "noted", None),
        (2.0, "fraud", "customer", "first", "fraud"),
        (2.0, "fraud", "customer", "repeated", None),
        (3.0, "fraud", "issuer", "confirmed", None),
        (4.0, "legitimate", "customer", "contradicted", None),
        (4.0, "fraud", "customer", "outranked", None),
        (5.0, "fraud", "rule", "ignored", None),
        (5.0, "legitimate", "analyst", "changed", "legitimate"),
        (4.5, "fraud", "analyst", "contradicted", None),
        (6.0, "fraud", "analyst", "changed", "fraud"),
        (7.0, "unknown", "analyst", "changed", "none"),
    ]
    for days, reported, source, outcome, known in steps:
        result = desk.say(0, after(days), reported, arrived=after(8), source=source)
        assert result.counts == {("label", outcome): 1}, (days, reported, source)
        assert [item[1] for item in followed(result)] == ([] if known is None else [known])


def test_an_early_label_waits_for_its_transaction_and_stands_behind_it() -> None:
    desk = Desk()
    result = desk.say(0, after(hours=2))
    assert everything(result) == ([], {("label", "early"): 1})
    assert everything(desk.say(0, after(hours=3), "legitimate")) == ([], {("label", "early"): 1})
    assert not followed(desk.buy(0, card_id="c2"))
    assert not followed(desk.buy(1))
    result = desk.buy(0)
    kinds = [type(message) for message in profiled(result, PROFILED)]
    assert kinds == [ProfiledTransaction, ProfiledLabel, ProfiledLabel]
    assert followed(result) == [
        ("t0", "fraud", microseconds(after(hours=2))),
        ("t0", "legitimate", microseconds(after(hours=3))),
    ]


def test_a_label_in_the_batch_of_its_transaction_stands_behind_it() -> None:
    desk = Desk()
    records = [desk.transactions.append(transaction(number)) for number in range(2)]
    labels = [desk.labels.append(label(number, after(1)), after(1)) for number in (1, 0)]
    result = desk.state.process([*records, *labels], NOW)
    order = [(type(message).__name__, message.transaction_id) for message in profiled(result, PROFILED)]
    assert order == [
        ("ProfiledTransaction", "t0"),
        ("ProfiledTransaction", "t1"),
        ("ProfiledLabel", "t1"),
        ("ProfiledLabel", "t0"),
    ]


def test_a_label_without_transaction_becomes_a_dead_letter_after_its_grace_period() -> None:
    desk = Desk()
    known_at = after(1)
    desk.say(404, known_at, key="value")
    assert not to(DEAD_LETTERS, desk.buy(0, known_at + timedelta(days=7)))
    result = desk.buy(1, known_at + timedelta(days=7, microseconds=1))
    (dead,) = to(DEAD_LETTERS, result)
    assert (dead.key, dead.value) == (b"key", desk.labels.records[0].value)
    assert reason(dead, "error") == "label_without_transaction"
    assert "'t404'" in reason(dead, "message")
    assert [reason(dead, name) for name in ("topic", "offset")] == ["labels", "0"]
    assert result.counts["label", "unknown_transaction"] == 1
    assert not to(DEAD_LETTERS, desk.buy(2, after(30)))
    assert not followed(desk.buy(404, after(30)))


def test_labels_that_wait_take_no_more_room_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 labels of .9 MB, of a release that accepted them, and their transaction."""
    desk, large = Desk(), "x" * 900_000
    refused = accept([Record("labels", 0, 0, 0, b"key", label(7, after(1), note=large))], LABEL_OPTIONS)
    assert reason(refused.outputs[0], "error") == "too_large"
    value, at_us = label(7, after(1), note=large), microseconds(after(1))
    records = []
    for offset in range(400):
        read = Record("labels", 0, offset, at_us // 1_000, b"key", value)
        sent = forward(read, ACCEPTED_LABELS, "c1", 0, at_us)
        records.append(Record("accepted-labels", 0, offset, 0, sent.key, sent.value, sent.headers))
    dead = [
        letter for first in range(0, 400, 50) for letter in to(DEAD_LETTERS, desk.work(records[first : first + 50]))
    ]
    assert [int(reason(letter, "offset")) for letter in dead] == list(range(20, 400))
    assert {reason(letter, "error") for letter in dead} == {"too_many_waiting"}
    assert "20 labels wait for its transaction already" in reason(dead[0], "message")
    pending = desk.state._pending.state
    assert (pending.count, pending.payload_bytes < 20 * 2**20) == (20, True)
    result = desk.buy(7, after(1))
    assert result.counts["label", "first"] + result.counts["label", "repeated"] == 20
    assert (pending.count, pending.payload_bytes) == (0, 0)
    monkeypatch.setattr(pending_module, "MOST_BYTES", 500_000)
    dead = to(DEAD_LETTERS, desk.work([desk.labels.append(label(n, after(1)), after(1)) for n in range(100, 4_100)]))
    assert 500_000 - 1_000 < pending.payload_bytes <= 500_000
    assert len(dead) == 4_000 - pending.count > 0
    assert "500000 bytes wait" in reason(dead[0], "message")


def test_a_label_past_its_horizon_is_counted_and_changes_nothing() -> None:
    desk = Desk(label_days=30)
    desk.buy(0)
    assert followed(desk.say(0, after(30))) == [("t0", "fraud", microseconds(after(30)))]
    result = desk.say(0, after(30, microseconds=1), "legitimate")
    assert everything(result) == ([], {("label", "too_late"): 1})
    assert desk.say(0, after(29), "legitimate", arrived=after(29)).counts == {("label", "contradicted"): 1}


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_leaves_the_state_that_live_processing_leaves(seed: int) -> None:
    """A replay reads all committed transactions, then all committed labels; live they came in any interleaving."""
    random = np.random.default_rng(seed)
    transactions, labels = busy_logs(seed, 400)
    live, replayed = partition(20, 20), partition(20, 20)
    until = transactions.records[300].timestamp_ms
    past, rest = split(transactions, until), split(labels, until)
    lived = Result()
    for batch, known in interleaved(past[0], rest[0], random):
        result = live.process([*batch, *known], NOW)
        lived.counts += result.counts
        lived.outputs += result.outputs
    for records in chunks(past[0], random):
        assert to(PROFILED, replayed.process(records, None)) == []
    for records in chunks(rest[0], random):
        replayed.process(records, None)

    assert {detail for what, detail in lived.counts if what == "label"} >= {"early", "first", "changed", "too_late"}
    assert lived.counts["duplicate", ""] > 5
    assert lived.counts["dead_letter", "label_without_transaction"] > 0
    more = 0
    for batch, known in interleaved(past[1], rest[1], random):
        after_live, after_replay = live.process([*batch, *known], NOW), replayed.process([*batch, *known], NOW)
        assert after_live.outputs == after_replay.outputs
        assert after_live.counts == after_replay.counts
        more += len(after_live.outputs)
    assert more > 50


def test_a_late_transaction_does_not_find_a_label_that_was_given_up() -> None:
    """Live the label became a dead letter before its transaction came; a replay meets them the other way round."""
    desk, replayed = Desk(), partition()
    desk.say(0, after(1), "legitimate", source="audit")
    desk.buy(1, after(20))
    assert not followed(desk.buy(0, after(0.5), arrived=after(20)))
    replayed.process(desk.transactions.records, None)
    replayed.process(desk.labels.records, None)
    record = desk.labels.append(label(0, after(21)), after(21))
    assert followed(desk.state.process([record], NOW)) == [("t0", "fraud", microseconds(after(21)))]
    assert followed(replayed.process([record], NOW)) == [("t0", "fraud", microseconds(after(21)))]


def busy_logs(seed: int, size: int) -> tuple[Log, Log]:
    """Sixty days of a few cards: late events, repeats, refused records, labels early, late, twice, and of nobody."""
    random = np.random.default_rng(seed)
    transactions, labels = Log(TRANSACTIONS), LabelLog()
    arrivals = sorted(random.uniform(0, 60, size).tolist())
    reported: list[tuple[float, bytes]] = []
    for number, days in enumerate(arrivals):
        kind = random.random()
        card = f"c{random.integers(4)}"
        happened = days - (random.uniform(0, 6) if kind < 0.1 else 0.0)
        if kind < 0.05:
            transactions.append(transaction(number, amount=-1), after(days))
        elif kind > 0.85 and number > 5:
            transactions.append(transactions.records[number - int(random.integers(1, 5))].value, after(days))
        else:
            value = transaction(
                number,
                after(happened),
                card_id=card,
                merchant_id=f"m{random.integers(3)}",
                amount=round(float(random.lognormal(3, 1)), 2),
                transaction_type=str(random.choice(["purchase", "cash", "refund"])),
            )
            transactions.append(value, after(days))
        for _ in range(int(random.integers(0, 4))):
            # Early ones too, and some beyond the label horizon of twenty days.
            delay = float(random.choice([-0.5, 0.2, 2, 8, 19, 22]))
            group = number if random.random() < 0.95 else 10_000 + number
            source = str(random.choice(["analyst", "customer", "chargeback", "rule", "audit"]))
            known = str(random.choice(["fraud", "legitimate", "disputed"]))
            at = max(days + delay, 0.0)
            value = label(group, after(at - float(random.choice([0, 1]))), known, card_id=card, source=source)
            reported.append((at, b"broken" if random.random() < 0.03 else value))
    for days, value in sorted(reported):
        labels.append(value, after(days))
    return transactions, labels


def split(log: Log, until_ms: int) -> tuple[list[Record], list[Record]]:
    return (
        [record for record in log.records if record.timestamp_ms < until_ms],
        [record for record in log.records if record.timestamp_ms >= until_ms],
    )


def chunks(records: list[Record], random: np.random.Generator) -> list[list[Record]]:
    cuts = sorted(random.integers(0, len(records) + 1, 5).tolist())
    return [records[start:end] for start, end in zip([0, *cuts], [*cuts, len(records)], strict=True)]


def interleaved(
    transactions: list[Record], labels: list[Record], random: np.random.Generator
) -> list[tuple[list[Record], list[Record]]]:
    """Batches of both, roughly as they arrived: a batch may hold labels of the hours before or behind it."""
    if not transactions:
        return [([], labels)]
    cuts = sorted({*random.integers(1, len(transactions), 40).tolist(), len(transactions)})
    batches, first, labels_up_to = [], 0, 0
    for cut in cuts:
        batch = transactions[first:cut]
        end_ms = batch[-1].timestamp_ms + int(random.integers(-6, 6)) * 3_600_000
        upto = labels_up_to + sum(record.timestamp_ms <= end_ms for record in labels[labels_up_to:])
        if cut == len(transactions):
            upto = len(labels)
        batches.append((batch, labels[labels_up_to:upto]))
        first, labels_up_to = cut, upto
    return batches


@pytest.mark.parametrize("timestamp_ms", [2**49, 2**49 + 1, 9_223_372_036_854_776, 10**18, 2**63 - 1])
def test_an_arrival_that_no_clock_shows_makes_no_transaction_come_from_the_future(timestamp_ms: int) -> None:
    log = Log(TRANSACTIONS)
    log.append(transaction(1, after(hours=1)), after(hours=1))
    late = msgspec.structs.replace(log.records[0], timestamp_ms=timestamp_ms)
    result = CardPartition(options(), None, MemoryStore()).process([late], NOW)
    assert len(to(PROFILED, result)) == 1
    assert not to(DEAD_LETTERS, result)
    assert late.arrived_us == 2**49 * 1_000
    assert msgspec.structs.replace(late, timestamp_ms=-(2**63)).arrived_us == 0
