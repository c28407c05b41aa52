"""Late, early, repeated, at the same instant, from the future: what becomes of a record by its order and its times."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.engine.cards import pending as pending_module
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.cards.joins import STREAM_TIME_US, Arrivals, Clock, Retention, join
from pipeline.engine.cards.pending import NO_LABELS
from pipeline.engine.cards.transaction_index import StoreIndex
from pipeline.engine.feedback import feedback_kernel
from pipeline.engine.feedback.decision_store import DecisionStore
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.partition_state.decision_segments import MemorySegments
from pipeline.engine.partition_state.layout import day_of
from pipeline.engine.partition_state.pending_items import PendingItems
from pipeline.engine.partition_state.state import MemoryStore, StoreError
from pipeline.engine.records.results import Result
from pipeline.features.catalogue import CARD_FEATURES
from schemas.messages import FeedbackConfig
from schemas.records import Record
from schemas.times import US_PER_DAY
from schemas.topics import DEAD_LETTERS, DECISION_FEATURES, EXAMPLES, TRANSACTIONS
from tests.helpers.logs import START, LabelLog, Log, after, features, label, microseconds, reason, to, transaction
from tests.reference.identities import transaction_digest
from tests.unit.engine.test_engine_card import NOW, Desk, bought, everything, followed, options, values_of


def counted(result: Result, window: str = "1d") -> float:
    """How many transactions of its card a single profiled transaction finds in a window."""
    (message,) = bought(result)
    return values_of(message.card_features)[CARD_FEATURES.index(f"card_count_{window}")]


def test_old_transactions_that_are_sent_twice_are_repeats() -> None:
    """The horizon counts from when the first was accepted: a history that is filled in is decided once."""
    desk = Desk(dedup_days=10, label_days=10)
    desk.buy(0, after(200))
    assert bought(desk.buy(1, after(2), arrived=after(200)))
    assert not bought(desk.buy(1, after(2), arrived=after(200)))
    desk.buy(2, after(210))
    assert not bought(desk.buy(1, after(2), arrived=after(210)))
    desk.buy(3, after(210, microseconds=1))
    assert bought(desk.buy(1, after(2), arrived=after(211)))


def test_a_transaction_a_year_ahead_of_its_arrival_moves_no_time() -> None:
    """A producer's clock runs a year ahead; the topic says when its records arrived."""
    desk = Desk(dedup_days=10, label_days=10)
    desk.buy(0)
    desk.say(1, after(hours=1))
    (dead,) = to(DEAD_LETTERS, desk.buy(9, after(365), arrived=after(hours=2)))
    assert reason(dead, "error") == "event_time_in_future"
    (dead,) = to(DEAD_LETTERS, desk.say(0, after(365), arrived=after(hours=2)))
    assert reason(dead, "error") == "unreadable"
    # Nothing is forgotten or given up because of it.
    assert counted(desk.buy(2, after(hours=3))) == 1
    assert not bought(desk.buy(0))
    assert followed(desk.buy(1, after(hours=4))) == [("t1", "fraud", microseconds(after(hours=1)))]


def test_the_tolerance_of_the_future_is_exact() -> None:
    desk = Desk()
    assert bought(desk.buy(0, after(seconds=300), arrived=START))
    assert to(DEAD_LETTERS, desk.buy(1, after(seconds=300, microseconds=1), arrived=START))


def test_a_label_far_past_the_horizon_is_counted_and_its_dead_letter_does_not_ask_for_it_again() -> None:
    """The horizon and seven days are over, and the transaction is still known."""
    desk = Desk(dedup_days=10, label_days=10)
    desk.buy(0)
    desk.buy(1, after(20))
    assert everything(desk.say(0, after(20))) == ([], {("label", "too_late"): 1})
    (dead,) = to(DEAD_LETTERS, desk.buy(2, after(28)))
    assert reason(dead, "error") == "label_without_transaction"
    assert reason(dead, "message").endswith(
        "unless the transaction happened more than 10 days before, which is too long"
    )


def test_a_label_far_past_the_horizon_leaves_the_same_state_whichever_is_read_first() -> None:
    live, replayed = Desk(dedup_days=10, label_days=10), Desk(dedup_days=10, label_days=10)
    live.buy(0)
    live.buy(1, after(20))
    live.say(0, after(20))
    # A replay without recorded order reads all transactions first: the one of the label is forgotten by then.
    live.buy(2, after(26))
    replayed.state.process(live.transactions.records, None)
    replayed.state.process(live.labels.records, None)
    replayed.state.commit()
    assert replayed.state._pending.state == live.state._pending.state
    assert {key: value for key, value in replayed.store.items().items() if key[:1] in b"wix"} == {
        key: value for key, value in live.store.items().items() if key[:1] in b"wix"
    }
    record = live.transactions.append(transaction(3, after(28)), after(28))
    assert len(to(DEAD_LETTERS, replayed.work([record]))) == len(to(DEAD_LETTERS, live.work([record]))) == 1


def test_a_flood_of_labels_takes_no_memory_and_is_given_up_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_module, "GIVE_UP_AT_MOST", 100)
    desk = Desk()
    desk.work([desk.labels.append(label(1_000 + n, after(1)), after(1)) for n in range(450)])
    pending = desk.state._pending.state
    assert pending.count == 450
    assert len(desk.state.dump().values) < 20_000 + len(desk.state.kernels.windows.dump()[0])
    given_up = [len(to(DEAD_LETTERS, desk.buy(number, after(20)))) for number in range(6)]
    assert given_up == [100, 100, 100, 100, 50, 0]
    assert desk.state._pending.state.count == 0
    assert {key[:1] for key in desk.store.items()} == {b"t", b"d"}


@pytest.mark.parametrize("seed", range(3))
def test_when_the_index_forgets_does_not_show(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events behind the retention are as if it were not there, however late they are swept."""
    random = np.random.default_rng(seed)
    transactions, labels = Log(TRANSACTIONS), LabelLog()
    batches: list[list[Record]] = []
    for number in range(200):
        days = number * 0.5
        source = max(number - int(random.integers(0, 70)), 0)
        batches.append([transactions.append(transaction(number, after(days)), after(days))])
        if random.random() < 0.5:
            # A repeat, from long ago or from just now.
            batches.append([transactions.append(transaction(source, after(0.5 * source)), after(days))])
        known_at = days - float(random.choice([0, 10, 20]))
        if known_at >= 0:
            batches.append([labels.append(label(source, after(known_at)), after(known_at))])
    prompt, slow = (CardPartition(options(10, 10), None, MemoryStore()) for _ in range(2))
    results = [prompt.process(batch, NOW) for batch in batches]
    monkeypatch.setattr(StoreIndex, "forget_before", lambda *_: None)
    assert [everything(slow.process(batch, NOW)) for batch in batches] == [everything(result) for result in results]
    assert sum(result.counts["duplicate", ""] for result in results) > 10
    assert sum(len(followed(result)) for result in results) > 10


def words(digests: Sequence[bytes]) -> NDArray[np.int64]:
    return np.frombuffer(b"".join(digests), ">i8").astype(np.int64).reshape(-1, 2)


def remember(index: StoreIndex, accepted: Sequence[tuple[bytes, int]]) -> None:
    """Accept (digest, event time) one after the other, whatever was accepted before."""
    digest = words([item for item, _ in accepted])
    names = np.array([b"m"] * len(accepted), object)
    times_us = np.array([time_us for _, time_us in accepted], np.int64)
    number = np.arange(len(accepted))
    given = Arrivals(digest, times_us, number, number, number, 0, number, names, NO_LABELS, number[:0])
    entries = index.fetch(digest, digest[:0])
    result = join(Retention(-1_000 * US_PER_DAY, 1_000 * US_PER_DAY), Clock(), entries, given, times_us, NO_LABELS)
    assert result.fate.all()
    index.update(entries, result, names)


def remembered(index: StoreIndex, digest: bytes) -> int | None:
    """When a transaction was accepted; None where it is forgotten."""
    entries = index.fetch(words([]), words([digest]))
    return int(entries.rows[0, STREAM_TIME_US]) if entries.count else None


def test_the_index_is_swept_a_bounded_number_at_a_time() -> None:
    store = MemoryStore()
    index = StoreIndex(store)
    digests = [bytes([number]) * 16 for number in range(100)]
    for number, digest in enumerate(digests):
        remember(index, [(digest, number * US_PER_DAY // 10)])
        store.commit()
    # One of the first day is accepted again later.
    remember(index, [(digests[0], 9 * US_PER_DAY)])
    store.commit()
    held = []
    for _ in range(6):
        index.forget_before(5, 12)
        store.commit()
        held.append(sum(key[:1] == b"t" for key in store.items()))
    assert held == [89, 77, 65, 53, 51, 51]
    found = [remembered(index, digests[number]) for number in (0, 1, 50)]
    assert found == [9 * US_PER_DAY, None, 5 * US_PER_DAY]
    index.forget_before(10, 1_000)
    store.commit()
    assert store.items() == {}


@pytest.mark.parametrize("seed", range(3))
def test_what_is_accepted_again_and_again_is_forgotten_with_its_last_time(seed: int) -> None:
    random = np.random.default_rng(seed)
    transactions = Log(TRANSACTIONS)
    store = MemoryStore()
    state = CardPartition(options(2, 2), None, store)
    counts: Counter[tuple[str, str]] = Counter()
    last_day: dict[bytes, int] = {}
    for day in range(60):
        # A new one each day, because repeats do not move the partition's event time on.
        numbers = [1_000 + day, *random.integers(0, 12, 6).tolist()]
        batch = [transactions.append(transaction(number, after(day)), after(day)) for number in numbers]
        counts += state.process(batch, NOW).counts
        state.commit()
        held = {
            key[1:]: int.from_bytes(packed[8:16], "little") for key, packed in store.items().items() if key[:1] == b"t"
        }
        for digest in [digest for digest in last_day if digest not in held]:
            assert last_day.pop(digest) < state.kernels.join.clock.first_day
        last_day |= {digest: day_of(stream_time_us) for digest, stream_time_us in held.items()}
        assert all(held_day >= state.kernels.join.clock.first_day for held_day in last_day.values())
    assert counts["accepted", ""] > 100
    assert counts["duplicate", ""] > 20
    assert state._index.state.again > 3
    state.process([transactions.append(transaction(99, after(200)), after(200))], NOW)
    state.commit()
    assert sorted(key[:1] for key in store.items()) == [b"d", b"t"]
    assert state._index.state.again == 0


def test_a_batch_that_reaches_past_the_horizon_forgets_its_own() -> None:
    """Its first transactions are swept with the others, so that no run stays behind what was swept."""
    transactions = Log(TRANSACTIONS)
    for number, days in enumerate([0, 0, 60]):
        transactions.append(transaction(number, after(days)), after(days))
    store = MemoryStore()
    state = CardPartition(options(10, 10), None, store)
    state.process(transactions.records, NOW)
    state.commit()
    assert sorted(key[:1] for key in store.items()) == [b"d", b"t"]


def test_waiting_items_come_oldest_first_and_once() -> None:
    store = MemoryStore()
    items = PendingItems(store)
    for number, at_us in enumerate([50, 10, 30, 10, 70]):
        items.add(b"a" * 16 if number % 2 else b"b" * 16, at_us, b"%d" % number)
    assert [item.payload for item in items.items(b"b" * 16)] == [b"0", b"2", b"4"]
    assert items.awaited([b"b" * 16, b"c" * 16]) == [b"b" * 16]
    assert items.take_older(10, 9) == []
    assert [item.payload for item in items.take_older(60, 2)] == [b"1", b"3"]
    assert items.awaited([b"a" * 16]) == []
    assert [item.payload for item in items.take_older(60, 9)] == [b"2", b"0"]
    items.add(b"a" * 16, 5, b"older")
    assert [item.payload for item in items.take_older(100, 9)] == [b"older", b"4"]
    assert items.take_older(100, 9) == []
    store.commit()
    assert store.items() == {}


def test_a_waiting_label_that_the_store_has_lost_is_the_store_s_error_and_no_record_s() -> None:
    store = MemoryStore()
    items = PendingItems(store)
    items.add(b"a" * 16, 5, b"label")
    store.delete(b"i" + b"a" * 16 + bytes(4))
    with pytest.raises(StoreError, match="has lost a waiting label"):
        items.take_older(10, 9)


def test_presumptions_come_piece_by_piece_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback_kernel, "PRESUME_AT_MOST", 40)
    state = FeedbackPartition(feedback_options(rate=1.0), MemoryStore())
    log = Log(DECISION_FEATURES)
    state.process([log.append(features(number, after(minutes=number))) for number in range(100)], NOW)
    emitted = []
    for number in range(4):
        result = state.process([log.append(features(100 + number, after(40)))], NOW)
        state.commit()
        emitted.append(len(to(EXAMPLES, result)))
    assert emitted == [40, 40, 20, 0]


def test_a_decision_behind_the_horizon_is_not_kept() -> None:
    segments = MemorySegments()
    state = FeedbackPartition(feedback_options(), MemoryStore(), segments=segments)
    log, labels = Log(DECISION_FEATURES), LabelLog()
    for number, days in ((0, 200), (1, 1)):
        state.process([log.append(features(number, after(days)))], NOW)
        state.commit()
    assert len(segments.find([transaction_digest("c1", f"t{number}") for number in (0, 1)])) == 1
    assert state.process([labels.append(label(1, after(199)), after(199))], NOW).counts == {("label", "early"): 1}


@pytest.mark.parametrize("seed", range(3))
def test_when_decisions_are_forgotten_does_not_show(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    decisions, labels = Log(DECISION_FEATURES), LabelLog()
    batches: list[list[Record]] = []
    for number in range(250):
        days = number * 0.5
        batches.append([decisions.append(features(number, after(days)), after(days))])
        source = max(number - int(random.integers(0, 110)), 0)
        known_at = after(days) - timedelta(days=float(random.choice([0, 5])))
        batches.append([labels.append(label(source, known_at), known_at)])
    options_ = feedback_options(rate=0.5, horizon_days=20)
    prompt, slow = FeedbackPartition(options_, MemoryStore()), FeedbackPartition(options_, MemoryStore())
    results = [prompt.process(batch, NOW) for batch in batches]
    monkeypatch.setattr(DecisionStore, "forget_before", lambda *_: None)
    assert [everything(slow.process(batch, NOW)) for batch in batches] == [everything(result) for result in results]
    assert sum(len(result.outputs) for result in results) > 50


def feedback_options(rate: float = 1e-9, horizon_days: int = 120) -> FeedbackConfig:
    return FeedbackConfig(
        label_horizon_us=horizon_days * US_PER_DAY, maturity_us=30 * US_PER_DAY, negative_sample_rate=rate
    )
