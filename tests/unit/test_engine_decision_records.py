"""Decision records hold all that an example takes over; compiled code and msgspec read the same from a decision."""

from datetime import timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.decision_records import DecisionReader, DecisionRecord, Kept, read_decision, unpack_decision
from pipeline.features.catalogue import FEATURES
from schemas.messages import LogPosition, RecordPosition
from tests.helpers.logs import after, decision, decode_decision

READER = DecisionReader()
SERVED = {name: None if number % 3 else number / 7 for number, name in enumerate(FEATURES)}
PLAIN = decision(3, features=SERVED)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
DAYS = st.floats(-9_000, 25_000)
ZONES = st.integers(-14 * 60, 14 * 60)


def read(value: bytes) -> DecisionRecord | None:
    (found,) = READER.read([value])
    return found


def kept(record: DecisionRecord) -> tuple[Any, ...]:
    """What an example is made of, and by what the decision is found."""
    packed = unpack_decision(record.packed)
    return (
        *record[:3],
        packed.named_features(),
        *msgspec.structs.astuple(msgspec.structs.replace(packed, features={})),
    )


@pytest.mark.parametrize(
    "features", [SERVED, {**SERVED, "one more": 1.0}, dict(reversed(SERVED.items())), {"amount": 2.0}, {}]
)
def test_an_example_can_be_made_of_a_record(features: dict[str, float | None]) -> None:
    value = decision(3, features=features)
    served = decode_decision(value)
    for record in (read_decision(value), read(value)):
        if record is not None:
            packed = unpack_decision(record.packed)
            assert list(packed.named_features().items()) == list(features.items())
            for name in Kept.__struct_fields__:
                if name != "features":
                    assert getattr(packed, name) == getattr(served, name)
    assert (read(value) is not None) == (features is SERVED)


def test_the_names_of_the_features_are_not_in_a_record() -> None:
    record = read(PLAIN)
    assert record is not None
    assert len(record.packed) < len(PLAIN) / 2
    assert not [name for name in FEATURES if f'"{name}"'.encode() in record.packed]


@given(
    st.lists(
        st.tuples(
            st.tuples(DAYS, ZONES),
            st.text(max_size=9),
            st.lists(NUMBERS | st.none(), min_size=len(FEATURES), max_size=len(FEATURES)),
            NUMBERS,
            st.none() | st.integers(0, 2**40),
            st.sampled_from([None, "score"]),
        ),
        max_size=4,
    )
)
def test_compiled_code_reads_what_msgspec_reads(rows: list[tuple[Any, ...]]) -> None:
    values = [
        decision(
            number,
            after(days).astimezone(timezone(timedelta(minutes=offset_min))),
            card_id=card,
            features=dict(zip(FEATURES, features, strict=True)),
            amount=1.5,
            logit=float(logit),
            selection=selection,
            log=LogPosition(partition=1, offset=number, row=row or 0),
            source=RecordPosition(topic="transactions", partition=0, offset=number, row=row),
        )
        for number, ((days, offset_min), card, features, logit, row, selection) in enumerate(rows)
    ]
    for value, (_, card, *_), found in zip(values, rows, READER.read(values), strict=True):
        plain = card.isascii() and card.isprintable() and not set(card) & {'"', "\\"}
        assert (found is not None) == plain
        if found is not None:
            assert kept(found) == kept(read_decision(value))


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        (b'"logit":-1.09', b'"logit":-01.09'),
        (b'"logit":-1.09', b'"logit":-.09'),
        (b'"logit":-1.09', b'"logit":1.2.3,"x":1.09'),
        (b'"logit":-1.09', b'"logit":+1.09'),
        (b'"logit":-1.0986122886681098', b'"logit":-1.'),
        (b'"logit":-1.0986122886681098', b'"logit":-'),
        (b'"logit":-1.0986122886681098', b'"logit":1e'),
        (b'"logit":-1.0986122886681098', b'"logit":1e+'),
        (b'"logit":-1.0986122886681098', b'"logit":NaN'),
        (b'"logit":-1.0986122886681098', b'"logit":nul'),
        (b'"logit":-1.0986122886681098', b'"logit":true'),
        (b'"logit":-1.0986122886681098', b'"logit":[1]'),
        (b'"logit":-1.0986122886681098', b'"logit":{"a":1}'),
        (b'"logit":-1.0986122886681098', b'"logit":"a\x01"'),
        (b'"logit":-1.0986122886681098', b'"logit":"a'),
        (b'"logit":-1.0986122886681098', b'"logit":'),
        (b'"card_id":"c1"', b'"card_id":1'),
        (b'"card_id":"c1"', b'"card_id":null'),
        (b'"card_id":"c1"', b'"card_id":"\\u0063"'),
        (b'"card_id":"c1",', b""),
        (b'"card_id":"c1",', b'"card_id":"c1","card_id":"c2",'),
        (b'"event_time":"2', b'"event_time":"x'),
        (b'"event_time":"2024', b'"event_time":"1989'),
        (b'"event_time":"2', b'"event_time":"1'),
        (b'"versions"', b'"other"'),
        (b'{"schema_version"', b' {"schema_version"'),
        (b'{"schema_version"', b'"schema_version"'),
    ],
)
def test_compiled_code_takes_nothing_that_is_not_plain(written: bytes, instead: bytes) -> None:
    assert written in PLAIN
    assert read(PLAIN) is not None
    other = PLAIN.replace(written, instead, 1)
    # Nor does it see a neighbour's bytes.
    before, found, behind = READER.read([PLAIN, other, PLAIN])
    assert (before, found, behind) == (read(PLAIN), None, read(PLAIN))


@pytest.mark.parametrize("end", range(1, len(PLAIN), 13))
def test_a_decision_that_is_cut_short_is_not_plain(end: int) -> None:
    assert READER.read([PLAIN[:end], PLAIN[end:], PLAIN + b" ", None]) == [None] * 4


@pytest.mark.parametrize("instead", [b"-0", b"0", b"1e5", b"1E-5", b"0.5e+10", b'"x"', b"null", b"-12.50"])
def test_scalars_are_kept_as_they_were_written(instead: bytes) -> None:
    record = read(PLAIN.replace(b'"logit":-1.0986122886681098', b'"logit":' + instead))
    assert record is not None
    assert msgspec.json.decode(record.packed, type=list[msgspec.Raw])[6] == msgspec.Raw(instead)


def test_an_instant_is_kept_in_the_zone_in_which_it_was_written() -> None:
    for value in (PLAIN.replace(b"Z", b"+02:00", 1), decision(3).replace(b"Z", b"+02:00", 1)):
        record = read(value) or read_decision(value)
        assert msgspec.json.encode(unpack_decision(record.packed).event_time).endswith(b'+02:00"')


def test_a_decision_without_what_an_example_needs_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="versions"):
        read_decision(decision(3).replace(b'"versions"', b'"other"'))


@pytest.mark.parametrize("year", [b"1989", b"2100"])
def test_a_decision_of_another_century_is_refused(year: bytes) -> None:
    with pytest.raises(ValueError, match="not between 1990 and 2100"):
        read_decision(PLAIN.replace(b'"event_time":"2024', b'"event_time":"' + year))
