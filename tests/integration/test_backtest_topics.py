"""Backtests of real topics: what live workers decided is decided again, and what is not the same has a cause."""

import weakref
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from confluent_kafka import TopicPartition

from pipeline.backtest.input.span import RangeError
from pipeline.backtest.labels.ground_truth import ground_truth
from pipeline.backtest.runner.live_comparison import ARRIVAL, BETWEEN, OTHER_VERSION, UNEXPLAINED, WINDOWS
from pipeline.backtest.runner.model_library import ACTIVE, ModelLibrary
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import TopicError
from schemas.messages import Decision
from schemas.topics import (
    ACCEPTED_LABELS,
    DEAD_LETTERS,
    DECISION_FEATURES,
    DECISIONS,
    LABELS,
    REROUTED,
    TRANSACTIONS,
)
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.champion import LARGE_AMOUNT, policy
from tests.helpers.digests import recorded_digests, restored_digests
from tests.helpers.logs import after, transaction
from tests.helpers.topics import Cluster, Key, Starter, keys, shop

pytestmark = pytest.mark.broker


def buy_out_of_order(cluster: Cluster, numbers: range, seed: int) -> dict[Key, float]:
    """A few cards at a few merchants; some arrive up to two days after their event, or in another card's partition."""
    random = np.random.default_rng(seed)
    bought: dict[Key, float] = {}
    for number in numbers:
        arrives = 20.0 * number
        late = float(random.choice([0, 0, 0, 90, 2_880]))
        card = f"c{random.integers(12)}"
        amount = LARGE_AMOUNT + number if number % 20 == 19 else round(float(random.lognormal(3, 0.6)), 2)
        fields = {"card_id": card, "amount": amount, "merchant_id": f"m{random.integers(5)}"}
        value = transaction(number, after(minutes=arrives - late), **fields)
        # A producer with another partitioner: some lie where their card does not belong, and are passed on.
        partition = 0 if number % 7 == 3 else None
        cluster.write(TRANSACTIONS, value, card.encode(), after(minutes=arrives), partition=partition)
        key = (card, f"t{number}")
        bought[key] = arrives
    cluster.flush()
    return bought


def label(cluster: Cluster, bought: dict[Key, float], seed: int, minutes: float) -> set[Key]:
    """Labels of a third, of which some are corrected and some withdrawn later."""
    random = np.random.default_rng(seed)
    reported = {key for key in bought if random.random() < 0.35}
    for number, key in enumerate(sorted(reported)):
        cluster.say(key, after(minutes=minutes + number), "fraud" if number % 2 else "legitimate")
        if number % 5 == 0:
            known = "disputed" if number % 10 else "fraud"
            cluster.say(
                key, after(minutes=minutes + number + 30), known, source="chargeback" if number % 3 else "audit"
            )
    # Before its transaction comes.
    cluster.flush()
    return reported


@pytest.fixture
def lived(cluster: Cluster, start: Starter) -> Cluster:
    """Five days of life: out of order, labelled and corrected, a worker stopped and started, and a new policy."""
    cluster.publish()
    cluster.say(("c1", "t250"), after(minutes=1))
    bought = buy_out_of_order(cluster, range(150), seed=1)
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= len(bought))
    reported = label(cluster, bought, seed=2, minutes=3_000)
    worker.until(
        lambda: len({(example.card_id, example.transaction_id) for example in cluster.examples()}) >= len(reported) // 2
    )
    # What is bought from now on is decided by what was learned of these.
    worker.until(lambda: cluster.versions("river") != [])
    bought |= buy_out_of_order(cluster, range(150, 230), seed=3)
    assert worker.stop() == 0, worker.output

    cluster.publish(policy(0.4))
    cluster.buy(240, after(minutes=4_800), card_id="c1", amount=-1)
    cluster.write(LABELS, b"nonsense", b"c1", after(minutes=4_800))
    bought |= buy_out_of_order(cluster, range(241, 300), seed=4)
    cluster.flush()
    for record in cluster.read(TRANSACTIONS)[:5]:
        cluster.write(TRANSACTIONS, record.value, record.key, after(minutes=6_000))
    cluster.flush()
    again = start(cluster.settings)
    again.until(lambda: len(cluster.decisions()) >= len(bought))
    label(cluster, bought, seed=5, minutes=6_100)
    bought |= buy_out_of_order(cluster, range(310, 360), seed=6)
    again.until(lambda: len(cluster.decisions()) >= len(bought))
    again.until(lambda: are_accepted(cluster))
    assert again.stop() == 0, again.output
    assert sorted(keys(cluster.decisions())) == sorted(bought)
    return cluster


def are_accepted(cluster: Cluster) -> bool:
    """Whether all labels but the one that is none are accepted, and known to the card agent."""
    accepted = cluster.read(ACCEPTED_LABELS)
    # The last one of each partition stays.
    ends = {record.partition: record.offset + 1 for record in accepted}
    committed = {number: offset for (_, number), offset in cluster.committed("card", ACCEPTED_LABELS).items()}
    known = all(committed.get(number, 0) >= end for number, end in ends.items())
    return known and len(accepted) == len(cluster.read(LABELS)) - 1


def by_key(frame: pd.DataFrame) -> dict[Key, tuple[float, str]]:
    columns = (frame["card_id"], frame["transaction_id"], frame["score"], frame["action"])
    return {(card, name): (score, str(action)) for card, name, score, action in zip(*columns, strict=True)}


def recorded(decisions: list[Decision]) -> dict[Key, tuple[float, str]]:
    return {(decision.card_id, decision.transaction_id): (decision.score, decision.action) for decision in decisions}


def offsets(cluster: Cluster) -> list[dict[tuple[str, int], int]]:
    pairs = (("card", TRANSACTIONS), ("label", LABELS), ("feedback", ACCEPTED_LABELS))
    return [cluster.committed(group, topic) for group, topic in pairs]


def test_live_decisions_come_again_to_the_last_bit_and_by_event_time_with_causes(
    lived: Cluster, tmp_path: Path
) -> None:
    before = offsets(lived)
    live = lived.decisions()
    # Something must be there to be told: several River versions and both policies.
    assert len({item.versions.river for item in live}) > 1
    assert len({item.versions.policy for item in live}) == 2
    assert lived.read(REROUTED) != []

    again = backtest_of(order="recorded", compare_live=True, settings=lived.settings)
    result = again.run()
    assert again.comparison is not None
    assert again.comparison.differences == []
    assert again.comparison.compared == len(live)
    assert by_key(result.variants[0].decisions) == recorded(live)
    assert "profiled records that the card kernel does not give again" not in result.counts
    (drift,) = result.drift
    assert (drift.lightgbm, drift.variants) == (live[0].versions.lightgbm, ("as recorded",))
    # What was refused live is counted, and what was not decided for it.
    refused = Counter(dict(record.headers)["dead-letter-error"] for record in lived.read(DEAD_LETTERS))
    assert refused == {b"amount_negative": 1, b"not_json": 1}
    losses = {name: count for name, count in result.counts.items() if name.startswith(("refused", "repeated"))}
    assert losses == {
        "repeated transactions": 5,
        "refused transactions: amount_negative": 1,
        "refused labels: not_json": 1,
    }
    assert result.counts["labels: first"] > 0
    reported = set(result.labels["transaction_id"])
    assert reported
    assert set(result.labels["label"]) == {"fraud", "legitimate", "disputed"}

    # The state too: of the snapshots that the workers left, of the log alone, and of the backtest.
    states, _ = restored_digests(lived.bootstrap, lived.settings, tmp_path / "from-snapshots")
    bare = lived.settings.model_copy(update={"snapshot_url": ""})
    assert restored_digests(lived.bootstrap, bare, tmp_path / "from-the-log")[0] == states
    replayed = recorded_digests(lived.bootstrap, lived.settings)
    assert replayed == {place: digest for place, digest in states.items() if place[0] != "feedback"}
    assert len(set(states.values())) == len(states), "every partition has its own state"

    # A part of it, warmed up by all that came before; whose clock the topics keep is theirs to say.
    unaware = lived.settings.model_copy(update={"timestamps": "broker"})
    part = backtest_of(order="recorded", compare_live=True, start=after(3), settings=unaware)
    part.run()
    assert part.comparison is not None
    assert part.comparison.differences == []
    assert part.comparison.compared == sum(item.event_time >= after(3) for item in live)

    # With less than that, what differs is what the windows have not seen.
    cut = backtest_of(order="recorded", compare_live=True, start=after(3), warm_up_s=86_400.0, settings=lived.settings)
    cut.run()
    assert cut.comparison is not None
    assert cut.comparison.compared == part.comparison.compared
    assert set(cut.comparison.causes) == {WINDOWS}

    # Another policy on the recorded order: the same scores, where versions are the same.
    strict = backtest_of(order="recorded", models=["active"], thresholds=[0.99, 0.01], settings=lived.settings).run()
    alerts = [int((variant.decisions["action"] == "alert").sum()) for variant in strict.variants]
    assert alerts[0] < alerts[1]

    what_if = backtest_of(compare_live=True, settings=lived.settings)
    first = what_if.run()
    second = backtest_of(settings=lived.settings).run()
    assert what_if.comparison is not None
    pd.testing.assert_frame_equal(first.variants[0].decisions, second.variants[0].decisions, check_exact=True)
    assert first.variants[0].decisions["event_time"].is_monotonic_increasing
    assert sorted(by_key(first.variants[0].decisions)) == sorted(recorded(live))
    causes = what_if.comparison.causes
    assert what_if.comparison.compared == len(live)
    assert causes[ARRIVAL] > 0
    assert UNEXPLAINED not in causes
    assert causes.keys() <= {ARRIVAL, BETWEEN, *OTHER_VERSION.values()}
    assert {name: first.counts[name] for name in losses} == losses
    assert offsets(lived) == before

    frame = what_if.comparison.frame()
    assert Counter(frame["cause"]) == causes
    late = set(frame[frame["cause"] == ARRIVAL]["transaction_id"])
    assert late <= {message.transaction_id for message in live}


def test_labels_of_topics_may_become_known_otherwise(cluster: Cluster) -> None:
    cluster.publish()
    bought = buy_out_of_order(cluster, range(150), seed=1)
    reported = label(cluster, bought, seed=2, minutes=3_000)
    # What was withdrawn in the end is not known, and what came before its transaction is.
    cluster.say(("c1", "t250"), after(minutes=1))
    cluster.flush()
    recorded = backtest_of(settings=cluster.settings).run()
    assert recorded.label_mode == "recorded"
    held = ground_truth(recorded.variants[0].decisions, recorded.labels)
    assert 0 < held.fraud.sum() < len(reported)
    for labels in ("delay", "simulated-review"):
        asked = backtest_of(
            settings=cluster.settings, labels=labels, label_delay_s=86_400.0, review_delay_s=60.0, reviews_a_day=2,
            models=["active"], thresholds=[0.0, 0.9],
        )  # fmt: skip
        result = asked.run()
        decisions = result.variants[0].decisions
        assert list(decisions["transaction_id"]) == list(recorded.variants[0].decisions["transaction_id"])
        truth = ground_truth(decisions, result.labels)
        assert truth.fraud.tolist() == held.fraud.tolist()
        assert truth.legitimate.tolist() == held.legitimate.tolist()
        late_us = truth.known_us[~truth.unlabelled] - result.event_time_us[~truth.unlabelled]
        assert set(late_us.tolist()) == {86_400_000_000}
        reviewed = [variant.reviewed for variant in result.variants]
        if labels == "delay":
            assert reviewed == [None, None]
        else:
            alerts = [item.alerts for item in reviewed if item is not None]
            assert alerts[0] > alerts[1]
            # Every transaction is alerted by the first: the two best of each day, of which many were never labelled.
            assert reviewed[0] is not None
            assert 0 < reviewed[0].unanswered < reviewed[0].alerts


def test_what_cannot_be_read_says_what_to_do(cluster: Cluster) -> None:
    cluster.publish()
    with pytest.raises(RangeError, match="holds no record"):
        backtest_of(settings=cluster.settings).run()
    bought = buy_out_of_order(cluster, range(60), seed=1)
    assert bought
    with pytest.raises(RangeError, match="no transaction to decide from"):
        backtest_of(settings=cluster.settings, start=after(300)).run()
    unknown = cluster.settings.model_copy(update={"topic_prefix": "nobody-"})
    with pytest.raises(TopicError, match="there is no topic nobody-"):
        backtest_of(settings=unknown).run()

    client = admin_client(cluster.bootstrap)
    name = cluster.settings.topic(TRANSACTIONS.name)
    gone = [TopicPartition(name, number, -1) for number in range(cluster.settings.card_partitions)]
    for future in client.delete_records(gone).values():
        future.result()
    cluster.buy(900, after(100), card_id="c1")
    cluster.flush()
    with pytest.raises(RangeError, match="before the first record that topic"):
        backtest_of(settings=cluster.settings, end=after(50)).run()
    result = backtest_of(settings=cluster.settings, start=after(99)).run()
    assert any("history begins at" in warning for warning in result.warnings)


def test_the_command_reads_topics(cluster: Cluster, start: Starter, tmp_path: Path) -> None:
    cluster.publish()
    bought = shop(cluster, range(60), seed=1)
    cluster.flush()
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= len(bought))
    assert worker.stop() == 0, worker.output
    written = tmp_path / "differences.csv"
    options = ["backtest", "--order", "recorded", "--compare", "live", "--differences", str(written)]
    ran = cluster.command(*options, code=0)
    assert f"{len(bought)} decisions compared with live: 0 differ" in ran.output
    assert len(pd.read_csv(written)) == 0
    assert "recorded features" not in ran.output
    # What came in the order of events differs by what other partitions did meanwhile, if at all.
    by_time = backtest_of(compare_live=True, settings=cluster.settings)
    by_time.run()
    assert by_time.comparison is not None
    assert by_time.comparison.compared == len(bought)
    assert by_time.comparison.causes.keys() <= {BETWEEN, OTHER_VERSION["river"]}
    # Without the features of a partition, everything else is still compared.
    client, name = admin_client(cluster.bootstrap), cluster.settings.topic(DECISION_FEATURES.name)
    for future in client.delete_records([TopicPartition(name, 0, -1)]).values():
        future.result()
    lost = sum(record.partition == 0 for record in cluster.read(DECISIONS))
    assert 0 < lost < len(bought)
    ran = cluster.command(*options, code=0)
    assert f"{len(bought)} decisions compared with live: 0 differ" in ran.output
    assert f"{lost} of {len(bought)} live decisions have no recorded features" in ran.output.replace("\n", " ")
    refused = cluster.command("backtest", "--from", "2031-01-01", code=1)
    assert "choose another range with --from and --to" in refused.output


def test_a_day_is_found_by_the_time_of_its_records(cluster: Cluster) -> None:
    cluster.publish()
    for number in range(200):
        cluster.buy(number, after(number), card_id=f"c{number % 7}")
    cluster.flush()
    result = backtest_of(settings=cluster.settings, start=after(150), end=after(151)).run()
    assert list(result.variants[0].decisions["transaction_id"]) == ["t150"]
    # The reach of features and the label delay before, and not more.
    assert result.warm_up_from_us == round(after(80).timestamp() * 1e6)
    assert result.warnings == []
    assert timedelta(days=70).total_seconds() * 1e6 == result.from_us - result.warm_up_from_us


def test_readers_of_a_library_close_when_nobody_has_it_any_more(cluster: Cluster) -> None:
    cluster.publish()
    library = ModelLibrary(cluster.settings, cluster.bootstrap)
    library.policy(ACTIVE)
    held = weakref.ref(library)
    del library
    assert held() is None, "a cycle keeps its readers open, until the program's end perhaps"
