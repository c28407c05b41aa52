"""Blocks of ``features`` give back what the models saw; what no score agent writes is refused."""

from collections.abc import Sequence
from datetime import timedelta, timezone

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.encoding.blocks import MOST_ROWS, BlockError, Sources, pack_block, parse_block, row_count
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.records.results import Result
from pipeline.engine.scores import feature_blocks
from pipeline.engine.scores.block_messages import row_value
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.decision_records import pack_records, read_feature_messages, unpack_record
from pipeline.engine.scores.feature_blocks import LAYOUT, read_features
from pipeline.features.catalogue import FEATURES
from schemas.messages import Decision, DecisionFeatures, LogPosition, RecordPosition, Versions
from schemas.records import Record
from schemas.topics import ALERTS, DECISION_FEATURES, DECISIONS, TRANSACTIONS
from tests.helpers.blocks import features_block, sealed
from tests.helpers.champion import active
from tests.helpers.logs import Log, after, decode_decision, feature_row, features, to, transaction
from tests.unit.engine.test_engine_score import NOW, profile, purchases, score

SAME = tuple(name for name in DecisionFeatures.__struct_fields__ if name not in ("schema_version", "features"))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)


def decided(cards: int = 9, partitions: int = 1, *, all_features: bool = False) -> Result:
    source = Log(TRANSACTIONS)
    for number in range(4 * cards):
        at = after(hours=number)
        source.append(
            transaction(number, at, card_id=f"c{number % cards}", amount=1_500 if number % 4 == 2 else 20), at
        )
    log = profile(source.records)
    return Decider("EUR", partitions, all_features=all_features).process(
        [(score(), log.records)], active(threshold=0.3), NOW
    )


def rows_of(result: Result) -> list[DecisionFeatures]:
    return [row for output in to(DECISION_FEATURES, result) for row in read_feature_messages(output.value)]


def decisions_of(result: Result) -> list[Decision]:
    return [decode_decision(output.value or b"") for output in to(DECISIONS, result)]


def record(value: bytes | None, skipped: tuple[int, ...] = ()) -> Record:
    return Record("features", 0, 0, 0, None, value, (), skipped)


@pytest.mark.parametrize("partitions", [1, 4])
def test_every_decision_has_a_row_with_what_the_models_saw(partitions: int) -> None:
    result = decided(partitions=partitions, all_features=True)
    found = {row.source: row for row in rows_of(result)}
    decisions = decisions_of(result)
    assert len(found) == len(rows_of(result)) == len(decisions) == 36
    for decision in decisions:
        row = found[decision.source]
        assert row.features == decision.features
        # No rule made the features.
        same = msgspec.structs.replace(decision, versions=msgspec.structs.replace(decision.versions, rules=""))
        assert [getattr(row, name) for name in SAME] == [getattr(same, name) for name in SAME]
    for output in to(DECISION_FEATURES, result):
        message = {partition_of(row.card_id, partitions) for row in read_feature_messages(output.value)}
        assert message == {output.partition}
        assert output.key is None


def test_features_travel_in_decisions_that_are_selected() -> None:
    slim, full = decisions_of(decided()), decisions_of(decided(all_features=True))
    assert {decision.selection for decision in slim} == {None, "rule", "score"}
    for decision, other in zip(slim, full, strict=True):
        assert decision.features == (None if decision.selection is None else other.features)
        assert other.features is not None
        assert msgspec.structs.replace(decision, features=None) == msgspec.structs.replace(other, features=None)
    assert b"features" not in (to(DECISIONS, decided())[0].value or b"")
    assert to(ALERTS, decided()) == to(ALERTS, decided(all_features=True))


def test_a_row_says_to_which_position_on_profiled_it_belongs() -> None:
    (output,) = to(DECISION_FEATURES, decided(cards=1))
    block = parse_block(output.value, LAYOUT)
    assert block.sources.text(block.names) == "profiled partition 2 offsets 0-3"
    logs = [row.log for row in read_feature_messages(output.value)]
    assert logs == [LogPosition(partition=2, offset=offset) for offset in range(4)]


def test_blocks_are_cut_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_of(decided())
    monkeypatch.setattr("pipeline.engine.encoding.block_writing.MOST_ROWS", 7)
    cut = to(DECISION_FEATURES, decided())
    assert [row_count(output.value) for output in cut] == [7, 7, 7, 7, 7, 1]
    assert [row for output in cut for row in read_feature_messages(output.value)] == whole


def test_more_names_than_a_code_can_number_make_more_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decided()
    monkeypatch.setattr(feature_blocks, "_MOST_NAMES", len(FEATURES) + len(feature_blocks.NUMBERS) + 3)
    with pytest.raises(RecursionError):
        decided()
    monkeypatch.setattr(feature_blocks, "_MOST_NAMES", len(FEATURES) + len(feature_blocks.NUMBERS) + 7)
    assert rows_of(decided()) == rows_of(whole)


@given(
    st.lists(
        st.tuples(TEXTS, TEXTS, TEXTS, NUMBERS, st.floats(0, 1), st.lists(st.none() | NUMBERS, min_size=3, max_size=3)),
        min_size=1,
        max_size=5,
    ),
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from([("a", "b", "c"), FEATURES[:3]]),
)
def test_what_is_written_is_read_and_stored(
    rows: Sequence[tuple[object, ...]], zone_min: int, names: tuple[str, ...]
) -> None:
    written = [
        feature_row(
            number,
            after(number).astimezone(timezone(timedelta(minutes=zone_min))),
            transaction_id=transaction,
            card_id=card,
            merchant_id=merchant,
            logit=logit,
            score=scored,
            features=dict(zip(names, values, strict=True)),  # type: ignore[call-overload]
            versions=Versions(lightgbm="l", river=f"r@{number % 2}", policy="p", kernel="k", rates=f"{number}"),
            source=RecordPosition(topic="transactions", partition=number, offset=2**40 + number),
            log=LogPosition(partition=3, offset=-1 if number else 2**40, row=number),
        )
        for number, (transaction, card, merchant, logit, scored, values) in enumerate(rows)
    ]
    value = features_block(written)
    assert read_feature_messages(value) == written
    assert [row_value(value, number) for number in range(len(written))] == [*map(msgspec.json.encode, written)]
    found = read_features(record(value))
    for packed, row in zip(pack_records(found, found.texts()), written, strict=True):
        stored = unpack_record(packed)._asdict()
        assert stored == {name: getattr(row, name) for name in stored}
        # Equal instants in different zones are equal.
        assert stored["event_time"].utcoffset() == row.event_time.utcoffset()


def test_the_names_of_this_kernel_s_features_are_not_stored() -> None:
    source = dict.fromkeys(FEATURES, 1.5)
    found = read_features(record(features(features=source)))
    (packed,) = pack_records(found, found.texts())
    assert b"card_usual_amount" not in packed
    assert unpack_record(packed).features == source


def test_rows_that_are_skipped_are_not_read() -> None:
    value = features_block([feature_row(number) for number in range(4)])
    found = read_features(record(value, skipped=(1, 3, 9)))
    assert [unpack_record(record).transaction_id for record in pack_records(found, found.texts())] == ["t0", "t2"]


def changed(**columns: object) -> bytes:
    """A block of two rows with something that no score agent writes, under right checksums."""
    block = parse_block(features_block([feature_row(number) for number in range(2)]), LAYOUT)
    wide, narrow, codes, numbers = block.wide.copy(), block.narrow.copy(), block.codes.copy(), block.features.copy()
    sources = {name: column.copy() for name, column in block.sources._asdict().items()}
    names = list(block.names)
    for name, to_value in columns.items():
        for source, array in ((LAYOUT.wide, wide), (LAYOUT.narrow, narrow), (LAYOUT.codes, codes)):
            if name in source:
                array[source.index(name), 1] = to_value
        if name.startswith("log_") and name != "log_row":
            sources[name.removeprefix("log_")][1] = to_value
        if name.startswith("number_"):
            numbers[1, int(name.removeprefix("number_"))] = to_value
        if name.startswith("name_"):
            names[int(name.removeprefix("name_"))] = to_value  # type: ignore[call-overload]
    return pack_block(
        block._replace(wide=wide, narrow=narrow, codes=codes, features=numbers, sources=Sources(**sources), names=names)
    )


WRONG = [
    ({"event_time_us": 0}, "event_time_us is not between 1990 and 2100"),
    ({"event_time_us": 2**62}, "event_time_us"),
    ({"amount_base_minor": -1}, "amount_base_minor is no amount"),
    ({"amount_base_minor": 2**62}, "amount_base_minor"),
    ({"producer_offset_min": 1_440}, "a UTC offset is a day or more"),
    ({"producer_offset_min": -(2**31)}, "a UTC offset"),
    ({"source_offset": -1}, "a partition or an offset is below 0"),
    ({"source_partition": -1}, "a partition or an offset"),
    ({"log_row": -1}, "a partition or an offset"),
    ({"log_offset": -2}, "a position on profiled is below 0"),
    ({"log_partition": -1}, "a position on profiled"),
    ({"number_0": np.nan}, "a score or a feature is infinite"),
    ({"number_2": np.inf}, "a score or a feature is infinite"),
    ({"number_2": 1.5}, "a score is no probability"),
    ({"number_2": -1e-9}, "a score is no probability"),
    ({"number_2": -np.inf}, "a score or a feature is infinite"),
    ({"name_0": b"score"}, "its numbers do not begin with logit, river_logit, score, or two have one name"),
    ({"name_4": b"amount"}, "its numbers do not begin with logit, river_logit, score, or two have one name"),
    ({"river": 255}, "a row has the number of a name that is not there"),
]


@pytest.mark.parametrize(("columns", "reason"), WRONG, ids=str)
def test_what_no_score_agent_writes_is_refused_with_the_rows_concerned(columns: dict[str, object], reason: str) -> None:
    assert len(read_feature_messages(changed())) == 2
    with pytest.raises(BlockError, match=reason) as refused:
        read_features(record(changed(**columns)))
    assert "profiled partition" in str(refused.value)


@pytest.mark.parametrize("text", ["", "x" * 1_025])
def test_an_identifier_is_neither_empty_nor_longer_than_producers_may_write(text: str) -> None:
    for name in ("transaction_id", "card_id", "merchant_id"):
        with pytest.raises(BlockError, match="has no name, or one that is too long"):
            read_features(record(features(**{name: text})))


@pytest.mark.parametrize(
    "names", [[f"{number:0100}" for number in range(400)], ["n" * 60_000], [str(number) for number in range(600)]]
)
def test_a_block_with_more_or_longer_names_than_any_kernel_s_is_refused(names: list[str]) -> None:
    with pytest.raises(BlockError, match="512 numbers a row, or names that are too long"):
        read_features(record(features(features=dict.fromkeys(names, 1.0))))


@pytest.mark.parametrize("version", ["k" * 300, "\x01" * 20_000])
def test_a_block_of_a_kernel_with_a_name_that_is_too_long_is_refused(version: str) -> None:
    versions = Versions(lightgbm="l", river="r", policy="p", kernel=version, rates="1")
    with pytest.raises(BlockError, match="its kernel is too long"):
        read_features(record(features(versions=versions)))


def test_the_longest_names_that_are_accepted_can_be_stored() -> None:
    versions = Versions(lightgbm="\x01" * 5_000, river="\x02" * 5_000, policy="p", kernel="\x03" * 256, rates="1")
    found = read_features(record(features(versions=versions)))
    (packed,) = pack_records(found, found.texts())
    assert unpack_record(packed).versions == versions


def test_a_block_has_as_many_rows_as_any_agent_writes() -> None:
    value = features_block([feature_row(number) for number in range(MOST_ROWS + 1)])
    with pytest.raises(BlockError, match="it says that it has 513 rows, and a block has 1 to 512"):
        read_features(record(value))
    assert row_count(value) == MOST_ROWS


def test_a_block_of_many_places_makes_a_short_error() -> None:
    rows = [feature_row(number, log=LogPosition(partition=number, offset=0), score=2.0) for number in range(500)]
    with pytest.raises(BlockError) as refused:
        read_features(record(features_block(rows)))
    assert len(str(refused.value)) < 2_000
    assert str(refused.value).endswith("...)")


def test_a_block_of_profiled_is_no_block_of_features() -> None:
    with pytest.raises(BlockError, match="it is no block of rows"):
        read_features(record(profile([purchases(1).records[0]]).records[0].value))


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_refused_or_harmless(seed: int) -> None:
    random = np.random.default_rng(seed)
    value = bytearray(features_block([feature_row(number) for number in range(3)]))
    for place in random.integers(16, len(value), 3).tolist():
        value[place] = random.integers(256)
    try:
        found = read_features(record(sealed(bytes(value))))
    except BlockError:
        return
    for packed in pack_records(found, found.texts()):
        unpack_record(packed)
