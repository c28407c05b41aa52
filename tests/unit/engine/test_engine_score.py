"""The score agent's kernel: one decision a transaction, from its log and the active models alone."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from pipeline.decision.rules import RuleSet
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.blocks import KernelMismatch
from pipeline.engine.records.results import Result
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.profiled import read_rows
from pipeline.engine.scores.score import ScorePartition
from pipeline.features.catalogue import CARD_FEATURES, FEATURES, KERNEL_VERSION
from pipeline.features.xxh3 import transaction_hash
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.river_factory import new_learner
from schemas.messages import Alert, Decision, LogPosition, ModelScores, ProfiledTransaction, RecordPosition
from schemas.records import Record
from schemas.topics import ALERTS, DEAD_LETTERS, DECISIONS, PROFILED, TRANSACTIONS
from tests.helpers.blocks import changed, with_text
from tests.helpers.champion import LARGE_AMOUNT, active, decide, rule
from tests.helpers.expected import differences, expected_features
from tests.helpers.lists import definition, entry, lists_of
from tests.helpers.logs import (
    START,
    Log,
    after,
    block_of,
    decode_alert,
    decode_decision,
    decode_profiled,
    reason,
    to,
    transaction,
)
from tests.helpers.models import example
from tests.unit.engine.test_engine_card import busy_logs, interleaved, partition

NOW = after(hours=1)


def score() -> ScorePartition:
    return ScorePartition()


def learned() -> Scorer:
    """A layer that has learned from 30 examples."""
    learner = new_learner()
    learner.learn_examples([example(number) for number in range(30)])
    return learner.snapshot(30)


def foreign(record: Record) -> Record:
    """``record`` as a card agent with another kernel would have written it."""
    return msgspec.structs.replace(record, value=changed(record.value, kernel="0-other"))


def profile(
    transactions: Sequence[Record], labels: Sequence[Record] = (), card: CardPartition | None = None, number: int = 2
) -> Log:
    """The log of one merchant partition, as the card agent writes it: labels behind all transactions."""
    log = Log(PROFILED, partition=number)
    log.take((card or partition()).process([*transactions, *labels], START))
    return log


def purchases(count: int, *, large: Sequence[int] = (), **changes: object) -> Log:
    log = Log(TRANSACTIONS)
    for number in range(count):
        at = after(hours=number)
        amount = 1_500.0 + number if number in large else 10.0 + number
        log.append(transaction(number, at, amount=amount, **changes), at)
    return log


def decisions(result: Result) -> list[Decision]:
    return [decode_decision(output.value or b"") for output in to(DECISIONS, result)]


def alerts(result: Result) -> list[Alert]:
    return [decode_alert(output.value or b"") for output in to(ALERTS, result)]


def rows(found: Sequence[Decision]) -> np.ndarray:
    return np.array([[decision.features[name] for name in FEATURES] for decision in found], np.float64)


def test_a_decision_says_what_was_decided_about_what_and_by_what() -> None:
    models = active()
    source = Log(TRANSACTIONS, partition=5)
    source.append(b"refused")
    record = source.append(
        transaction(4, after(hours=7), amount="20.50", currency="USD", transaction_type="refund", merchant_id="m3")
    )
    log = Log(PROFILED, partition=2)
    log.append(profile([source.append(transaction(3))], card=partition(partitions=6)).records[0].value)
    later = msgspec.structs.replace(record, timestamp_ms=record.timestamp_ms + 10**9)
    log.append(profile([later], card=partition(partitions=6)).records[0].value)
    result = decide(score(), log.records[1:], models, NOW)
    (output,) = to(DECISIONS, result)
    assert (output.key, output.headers) == (b"c1", ())
    (decision,) = decisions(result)
    profiled = decode_profiled(log.records[1].value or b"")
    assert isinstance(profiled, ProfiledTransaction)
    assert (decision.transaction_id, decision.card_id, decision.merchant_id) == ("t4", "c1", "m3")
    assert decision.event_time == after(hours=7)
    assert (str(decision.amount), decision.currency) == ("20.50", "USD")
    assert (decision.amount_base, decision.base_currency) == (profiled.amount_base_minor / 100, "EUR")
    assert decision.transaction_type == "refund"
    assert decision.source == profiled.source
    assert (decision.source.partition, decision.source.offset) == (5, 1)
    assert decision.log == LogPosition(partition=2, offset=1)
    assert (decision.case_id, decision.case_sequence) == (profiled.case_id, 1)
    assert (decision.ingested_at, decision.decided_at) == (START, NOW)
    assert decision.versions == models.versions(profiled.rates_version)
    assert (decision.versions.kernel, decision.versions.lightgbm) == (KERNEL_VERSION, models.lightgbm.version)
    assert decision.threshold == models.policy.threshold
    assert result.latencies_s == [3_600.0]
    assert b"NaN" not in (output.value or b"")


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_scores_are_those_of_the_models_on_the_features_as_served(weight: float) -> None:
    models = active(learned(), blend=weight)
    result = decide(score(), profile(purchases(40, large=[11, 30]).records).records, models, NOW)
    found = decisions(result)
    features = rows(found)
    logit = models.lightgbm.logit(features)
    river = models.river.logit(features, logit)
    assert [decision.logit for decision in found] == logit.tolist()
    assert [decision.model_scores for decision in found] == [
        ModelScores(lightgbm=a, river=b) for a, b in zip(sigmoid(logit).tolist(), sigmoid(river).tolist(), strict=True)
    ]
    assert np.abs(river - logit).max() > 0.1
    expected = sigmoid((1 - weight) * logit + weight * river)
    assert [decision.score for decision in found] == pytest.approx(expected.tolist(), rel=1e-9)
    assert {decision.versions.river for decision in found} == {learned().version}


def test_the_policy_selects_and_an_alert_explains() -> None:
    models = active(threshold=0.5)
    result = decide(score(), profile(purchases(40, large=[11, 30]).records).records, models, NOW)
    found = {decision.transaction_id: decision for decision in decisions(result)}
    raised = alerts(result)
    assert {alert.transaction_id for alert in raised} == {
        name for name, decision in found.items() if decision.action == "alert"
    }
    assert {"t11", "t30"} <= {alert.transaction_id for alert in raised} < found.keys()
    for decision in found.values():
        by_score = decision.score >= 0.5
        by_rule = decision.amount_base >= LARGE_AMOUNT
        assert decision.selection == ("score" if by_score else "rule" if by_rule else None)
        assert decision.action == ("allow" if decision.selection is None else "alert")
        assert decision.selection_probability == (0.0 if decision.selection is None else 1.0)
    for alert in raised:
        decision = found[alert.transaction_id]
        for name in ("card_id", "merchant_id", "event_time", "amount", "currency", "amount_base", "base_currency"):
            assert getattr(alert, name) == getattr(decision, name)
        for name in ("score", "model_scores", "threshold", "selection", "versions", "source", "log", "case_id"):
            assert getattr(alert, name) == getattr(decision, name)
        identity = transaction_hash("c1", alert.transaction_id)
        assert alert.alert_id == f"{identity:016x}-{alert.source.partition}-{alert.source.offset}"
        assert alert.raised_at == NOW
        assert alert.severity == pytest.approx(alert.score * alert.amount_base, abs=0.005)
        assert 1 <= len(alert.reasons) <= models.policy.max_reasons
        assert all(reason.code and reason.sentence for reason in alert.reasons)
        if alert.amount_base >= LARGE_AMOUNT:
            assert alert.reasons[0].code == "large-amount"
    assert result.counts["alert", "score"] + result.counts["alert", "rule"] == len(raised)
    assert result.counts["decision", "alert"] == len(raised)
    assert result.counts["decision", "allow"] == 40 - len(raised)


def test_lists_are_counted_by_their_kind() -> None:
    kinds = {"stolen": "block", "quiet": "suppress", "good": "allow", "seen": "watch", "also_seen": "watch"}
    names = [definition(name, kind, "merchant_id") for name, kind in kinds.items()]
    entries = [entry("stolen", "m1"), entry("quiet", "m1"), entry("quiet", "m2"), entry("good", "m0")]
    entries += [entry(name, value) for name in ("seen", "also_seen") for value in ("m1", "m0")]
    rules = [definition("rules", "suppress", "rule")], [entry("rules", "large-amount")]
    lists = lists_of([*names, *rules[0]], [*entries, *rules[1]])
    bought = Log(TRANSACTIONS)
    for number in range(40):
        at, amount = after(hours=number), 1_500.0 if number % 3 == 0 else 10.0
        bought.append(transaction(number, at, amount=amount, merchant_id=f"m{number % 4}"), at)
    records = profile(bought.records).records
    result = decide(score(), records, replace(active(threshold=0.0), lists=lists), NOW)
    expected: Counter[tuple[str, str]] = Counter()
    for each in decisions(result):
        expected.update(("list_hit", kind) for kind in {kinds[name] for name in each.list_hits or ()})
        by = {name.rpartition("/")[0] or name for name in each.overruled or {}}
        expected.update(("overruled", (kinds | {"rules": "suppress"})[name]) for name in by)
    counted = {key: count for key, count in result.counts.items() if key[0] in ("list_hit", "overruled")}
    assert counted == expected
    assert {kind for what, kind in counted if what == "list_hit"} == {*kinds.values()}
    assert {kind for what, kind in counted if what == "overruled"} == {"block", "suppress", "allow"}
    without = decide(score(), records, active(threshold=0.5), NOW)
    assert not [key for key in without.counts if key[0] in ("list_hit", "overruled")]


def test_a_cap_counts_the_alerts_that_a_rule_raises_and_no_hit_that_a_list_overrules() -> None:
    rules = RuleSet([rule(code, "amount > 0", max_alerts_per_hour=2) for code in ("any", "muted")])
    kinds = {"shop": "allow", "stolen": "block", "quiet": "suppress"}
    entries = [entry(name, name) for name in kinds] + [entry("mute", "muted")]
    names = [*(definition(name, kind, "merchant_id") for name, kind in kinds.items())]
    lists = lists_of([*names, definition("mute", "suppress", "rule")], entries)
    bought = Log(TRANSACTIONS)
    for number, merchant in enumerate([*[*kinds] * 4, *(f"m{number}" for number in range(5)), *kinds]):
        at = after(seconds=number)
        bought.append(transaction(number, at, merchant_id=merchant), at)
    models = replace(active(rules=rules, threshold=0.999), lists=lists)
    found = decisions(decide(score(), profile(bought.records).records, models, NOW))
    expected = {
        "shop": (None, {"mute": ["muted"], "shop": ["any"]}),
        "stolen": ("list", {}),
        "quiet": (None, {"quiet": ["any", "muted"]}),
    }
    for each in found[:12] + found[17:]:
        overruled = {name.partition("/")[0]: codes for name, codes in (each.overruled or {}).items()}
        assert (each.selection, overruled) == expected[each.merchant_id]
        assert (each.rule_hits, each.shadow_hits) == (["any", "muted"], [])
    assert [each.selection for each in found[12:17]] == ["rule", "rule", None, None, None]
    assert [each.rule_hits for each in found[12:17]] == [["any", "muted"]] * 2 + [["muted"]] * 3
    assert all([*(each.overruled or {}).values()] == [["muted"]] for each in found[12:17])


def test_a_transaction_that_is_accepted_again_has_an_alert_of_its_own() -> None:
    source, log, card = Log(TRANSACTIONS), Log(PROFILED, partition=2), partition()
    for number, days in ((0, 0), (1, 1_000), (0, 1_001)):
        at = after(hours=24 * days)
        log.take(card.process([source.append(transaction(number, at, amount=1_500.0 - 900 * number), at)], START))
    once, again = alerts(decide(score(), log.records, active(), NOW))
    assert (once.transaction_id, again.transaction_id) == ("t0", "t0")
    assert once.alert_id != again.alert_id
    repeated = alerts(decide(score(), log.records, active(), NOW))
    assert [alert.alert_id for alert in repeated] == [once.alert_id, again.alert_id]


def test_sentences_have_an_amount_in_another_currency_beside_the_base_currency_s() -> None:
    result = decide(score(), profile(purchases(40, large=[30], currency="USD").records).records, active(), NOW)
    (alert,) = (alert for alert in alerts(result) if alert.transaction_id == "t30")
    assert alert.currency == "USD"
    assert any(f"{alert.amount_base:,.2f} EUR (1530.0 USD)" in reason.sentence for reason in alert.reasons)


@pytest.mark.parametrize("number", [b"9" * 500, b"9" * 5_000, b"0." + b"1" * 500, b"1e999"])
def test_a_long_number_in_an_unknown_field_comes_through_both_hops_as_it_is(number: bytes) -> None:
    plain, odd = transaction(1), transaction(1)[:-1] + b',"unknown":' + number + b"}"
    logs = []
    for value in (plain, odd):
        source = Log(TRANSACTIONS)
        source.append(value)
        logs.append(profile(source.records))
    assert b'"unknown":' + number in (logs[1].records[0].value or b"")
    models = active()
    (expected,), (found,) = (decisions(decide(score(), log.records, models, NOW)) for log in logs)
    assert found == expected


def test_an_audit_puts_a_share_before_an_analyst() -> None:
    models = active(threshold=math.nextafter(1.0, 2.0), audit_rate=0.2, rules=RuleSet())
    found = decisions(decide(score(), profile(purchases(200).records).records, models, NOW))
    audited = [decision for decision in found if decision.selection == "audit"]
    assert 20 < len(audited) < 60
    assert {decision.selection_probability for decision in found} == {0.2}
    assert {decision.action for decision in audited} == {"alert"}


def test_partitions_that_are_decided_together_are_decided_as_each_alone() -> None:
    busy = enumerate([busy_logs(5, 60), busy_logs(6, 9)])
    logs = [profile(source.records, labels.records, number=number) for number, (source, labels) in busy]
    models = active(learned(), blend=0.5, audit_rate=0.2)
    alone = [decide(score(), log.records, models, NOW) for log in logs]
    nothing = (score(), Log(PROFILED).records)
    together = Decider("EUR", 1, all_features=True).process(
        [(score(), logs[0].records), nothing, (score(), logs[1].records)], models, NOW
    )
    for topic in (DECISIONS, ALERTS):
        assert to(topic, together) == [output for result in alone for output in to(topic, result)]
    assert to(ALERTS, together)
    assert together.counts == alone[0].counts + alone[1].counts
    assert together.latencies_s == [*alone[0].latencies_s, *alone[1].latencies_s]


def test_features_are_those_of_the_reference_with_labels_late_events_and_repeats() -> None:
    transactions, labels = busy_logs(4, 350)
    card, state, models = partition(), score(), active()
    log, found = Log(PROFILED), list[Decision]()
    for batch, known in interleaved(transactions.records, labels.records, np.random.default_rng(4)):
        found += decisions(decide(state, log.take(card.process([*batch, *known], START)), models, NOW))
    expected = expected_features(log.records)
    assert len(found) == len(expected) > 200
    assert differences(found, expected) == []
    assert any(decision.features["merchant_known_fraud_30d"] for decision in found)


def only_block() -> bytes:
    (record,) = profile([Log(TRANSACTIONS).append(transaction())]).records
    return record.value or b""


def features_of(value: float, count: int = len(CARD_FEATURES)) -> np.ndarray:
    return np.full((1, count), value)


@pytest.mark.parametrize(
    "garbage",
    [
        *(b"{}", b"", None, b"\xff", b"[" * 5_000, b'{"kind":"other"}'),
        *(changed(only_block(), event_time_us=value) for value in (2**63 - 1, -1, 0)),
        *(changed(only_block(), amount_base_minor=value) for value in (-1, 2**62)),
        *(changed(only_block(), ingested_at_us=value) for value in (-1, 2**62)),
        *(changed(only_block(), case_sequence=value) for value in (-1, 2**63 - 1)),
        *(changed(only_block(), producer_offset_min=value) for value in (-1_440, 1_440)),
        *(changed(only_block(), **{name: -1}) for name in ("source_offset", "source_partition", "input_offset")),
        *(changed(only_block(), features=features_of(*source)) for source in ((0.0, 3), (math.inf,), (-math.inf,))),
        *(
            with_text(only_block(), col.AMOUNT, text)
            for text in (b"", b"NaN", b"1,", b"01", b'1,"x":2', b"-", b"1e", b".5")
        ),
        *(with_text(only_block(), column, b"") for column in (col.ID, col.CARD, col.MERCHANT)),
        *(with_text(only_block(), column, b"x" * 1_025) for column in (col.ID, col.CARD, col.MERCHANT)),
        *(with_text(only_block(), column, b"\xe4") for column in (col.ID, col.CURRENCY, col.ORIGINAL)),
        changed(only_block(), known_at_us=2**63 - 1),
        only_block()[:-1],
        only_block() + b" ",
        only_block().replace(b"transactions", b"transactionz"),
        only_block().replace(b"purchase", b"Purchase"),
    ],
)
def test_an_unreadable_record_is_a_dead_letter_and_changes_nothing(garbage: bytes | None) -> None:
    log = Log(PROFILED)
    log.append(garbage)
    for number in range(3):
        source = Log(TRANSACTIONS)
        source.records += [Record(TRANSACTIONS.name, 0, 0, 0, b"", b"")] * number
        record = source.append(transaction(number, after(number)), after(number))
        (read,) = profile([msgspec.structs.replace(record, offset=number)]).records
        log.append(read.value)
    result = decide(score(), log.records, active(), NOW)
    (letter,) = to(DEAD_LETTERS, result)
    assert letter.value == garbage
    assert dict(letter.headers)["dead-letter-error"] == b"unreadable"
    expected = decide(score(), log.records[1:], active(), NOW)
    assert [decision.features for decision in decisions(result)] == [
        decision.features for decision in decisions(expected)
    ]
    # A restore skips it as well.
    restored, live = score(), score()
    restored.replay(log.records)
    live.profile(read_rows(log.records[1:]), range(3), Result())
    restored.commit()
    live.commit()
    assert restored.dump(full=True).values == live.dump(full=True).values


def test_a_damaged_block_s_dead_letter_lists_the_source_records_in_it() -> None:
    log = Log(PROFILED)
    log.take_whole(partition().process(purchases(4).records, START))
    (record,) = log.records
    damaged = (record.value or b"")[:-1] + b"!"
    result = decide(score(), [msgspec.structs.replace(record, value=damaged)], active(), NOW)
    (letter,) = to(DEAD_LETTERS, result)
    assert letter.value == damaged
    assert "transactions partition 0 offsets 0-3" in reason(letter, "message")


def test_another_kernel_s_features_are_refused_by_name_of_the_record() -> None:
    (record,) = profile([Log(TRANSACTIONS).append(transaction())]).records
    log = Log(PROFILED, partition=2)
    log.append(record.value)
    log.append(changed(record.value, kernel="0-other", source_offset=1, input_offset=1))
    with pytest.raises(KernelMismatch, match=r"profiled partition 2 offset 1 .* kernel 0-other"):
        decide(score(), log.records, active(), NOW)
    # What was decided by an earlier version may stay in the log: a replay uses none of its features.
    score().replay(log.records)


def test_what_blocks_have_shown_of_an_input_is_known() -> None:
    state, records = score(), profile(purchases(4).records).records
    decide(state, records[:2], active(), NOW)
    state.commit()
    with pytest.raises(KernelMismatch):
        decide(state, [foreign(records[2])], active(), NOW)
    state.rollback()
    shown = {("transactions", 0, offset) for offset in range(2)}
    unseen = {("transactions", 0, 2), ("transactions", 1, 0), ("rerouted", 0, 0)}
    assert state.unseen(shown | unseen) == unseen


def test_another_kernel_with_another_number_of_features_is_refused_by_name_too() -> None:
    (record,) = profile([Log(TRANSACTIONS).append(transaction())]).records
    message = decode_profiled(record.value or b"")
    assert isinstance(message, ProfiledTransaction)
    wider = msgspec.structs.replace(message, kernel="0-other", card_features=message.card_features + b"\0" * 8)
    with pytest.raises(KernelMismatch, match=r"offset 0 .* kernel 0-other"):
        decide(score(), [Log(PROFILED).append(block_of(wider))], active(), NOW)


def test_repeats_are_known_by_where_the_card_agent_read_the_record() -> None:
    """What was passed on comes out of order by its first place, and in order by the place where it was read."""
    (record,) = profile([Log(TRANSACTIONS).append(transaction())]).records
    message = decode_profiled(record.value or b"")
    assert isinstance(message, ProfiledTransaction)
    log = Log(PROFILED)
    for number, (source, read) in enumerate([(9, None), (12, 4), (3, 5), (12, 4), (10, None), (9, None)]):
        moved = msgspec.structs.replace(
            message,
            transaction_id=f"t{number}",
            source=RecordPosition(topic="transactions", partition=0, offset=source),
            read=None if read is None else RecordPosition(topic="rerouted", partition=0, offset=read),
        )
        log.append(block_of(moved))
    result = decide(score(), log.records, active(), NOW)
    assert [decision.transaction_id for decision in decisions(result)] == ["t0", "t1", "t2", "t4"]
    assert result.counts["duplicate", ""] == 2
