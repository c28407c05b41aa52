"""The card agent's kernel on records in the producers' own JSON."""

import msgspec
import numpy as np

from pipeline.engine.cards.card_batch import process_together
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.forwarding import ORIGINAL
from pipeline.engine.records.results import Result
from schemas.mapping import Mapper
from schemas.messages import ProfiledTransaction
from schemas.records import Record
from schemas.topics import DEAD_LETTERS, PROFILED, REROUTED, TRANSACTIONS
from tests.contract.records import RATES
from tests.helpers.logs import START, Log, after, profiled, reason, to, transaction
from tests.helpers.mappings import core, foreign
from tests.unit.engine.test_engine_card import options

NOW = after(days=1)
MAPPED = options()._replace(mapper=Mapper(core(), RATES))


def work(records: list[Record], own: CardOptions = MAPPED, state: CardPartition | None = None) -> Result:
    kernels = (state or CardPartition(own, None, MemoryStore())).kernels
    return process_together([(kernels, records)], NOW, own)


def bought(result: Result) -> list[ProfiledTransaction]:
    return [message for message in profiled(result, PROFILED) if isinstance(message, ProfiledTransaction)]


def test_foreign_records_have_the_features_of_the_same_transactions() -> None:
    random = np.random.default_rng(1)
    stated = [
        transaction(number, after(seconds=60 * number), card_id=f"c{random.integers(3)}", amount=number + 0.25)
        for number in range(60)
    ]
    own, theirs = Log(TRANSACTIONS), Log(TRANSACTIONS)
    for value in stated:
        own.append(value, NOW)
        theirs.append(foreign(value), NOW)
    plain, mapped = bought(work(own.records, options())), bought(work(theirs.records))
    assert len(mapped) == 60
    assert [message.card_features for message in mapped] == [message.card_features for message in plain]
    fields = msgspec.json.decode(mapped[3].transaction)
    assert (fields["transaction_id"], fields["currency"], fields["amount"]) == ("t3", "EUR", 3.25)


def test_all_that_was_sent_is_accepted_a_repeat_or_a_dead_letter_with_its_own_bytes() -> None:
    log = Log(TRANSACTIONS)
    value = foreign(transaction(1, START))
    sent = [value, value, b"{}", foreign(transaction(2, START)).replace(b'"shop"', b'"shops"'), b"no JSON"]
    sent += [foreign(transaction(1, START, amount=99.0)), transaction(3, START)]
    for item in sent:
        log.append(item, NOW)
    result = work(log.records)
    letters = to(DEAD_LETTERS, result)
    assert result.counts["accepted", ""] + result.counts["duplicate", ""] + len(letters) == len(sent)
    assert [letter.value for letter in letters] == [sent[4], sent[2], sent[3], sent[6], sent[5]]
    assert reason(letters[0], "message").endswith(" Mapping core-1 cannot be followed.")
    for letter in letters[1:]:
        assert reason(letter, "message").endswith(" Mapping core-1 has made this of the producer's JSON.")


def test_a_record_that_is_passed_on_is_mapped_once() -> None:
    two = MAPPED._replace(partitions=2)
    log, state = Log(TRANSACTIONS), CardPartition(two, None, MemoryStore())
    for number in range(20):
        log.append(foreign(transaction(number, START, card_id=f"c{number}")), NOW)
    result = work(log.records, two, state)
    away = to(REROUTED, result)
    assert len(away) + len(bought(result)) == 20
    assert 0 < len(away) < 20
    rerouted = [
        Record(REROUTED.name, 1, offset, 0, output.key, output.value, output.headers)
        for offset, output in enumerate(away)
    ]
    # Whoever reads them next has another mapping by now, or none.
    there = CardPartition(two, None, MemoryStore())
    again = work(rerouted, two._replace(mapper=None), there)
    assert {message.card_id for message in bought(again)} | {message.card_id for message in bought(result)} == {
        f"c{number}" for number in range(20)
    }
    there.commit()
    other = msgspec.json.decode(away[0].value or b"") | {"amount": 77}
    repeat = msgspec.structs.replace(rerouted[0], offset=30, value=msgspec.json.encode(other))
    (letter,) = to(DEAD_LETTERS, work([repeat], two, there))
    assert reason(letter, "message").endswith(" A mapping has made this of the producer's JSON.")
    originals = {record.offset: record.value for record in log.records}
    assert letter.value == originals[int(reason(letter, "offset"))]


def test_an_original_that_is_nothing_is_no_record_of_a_card_agent() -> None:
    log = Log(TRANSACTIONS)
    two = MAPPED._replace(partitions=2)
    for number in range(9):
        log.append(foreign(transaction(number, START, card_id=f"c{number}")), NOW)
    (away, *_) = to(REROUTED, work(log.records, two))
    headers = (*away.headers[:-1], (ORIGINAL, None))
    (letter,) = to(DEAD_LETTERS, work([Record(REROUTED.name, 1, 0, 0, away.key, away.value, headers)], two))
    assert reason(letter, "error") == "rerouted_headers"
