"""A field that is declared at the one place arrives in columns from whatever holds transactions."""

from tests.helpers.declared_fields import PLAIN
from tests.helpers.worker import printed_json

REFUSED = "invalid_value"


def test_a_declared_field_arrives_from_every_reader() -> None:
    found = printed_json("tests.helpers.declared_fields")
    plain = [list(values) for values in PLAIN]
    odd = [["Österreich", 0.5], ["32", 0.001], REFUSED, "wrong_type"]
    assert found["scanner"] == plain
    assert found["plain"] == [True] * len(plain) + [False] * len(odd)
    assert found["decoder"] == [*plain, *odd]
    # A CSV cannot tell an empty text from none.
    assert found["csv"] == [*([country or None, risk] for country, risk in plain), *odd]
    assert found["parquet"] == found["frame"] == found["replay"] == plain
    numbers, texts = found["kernel"]
    assert [number for (number,) in numbers] == [0.25, None, 1.0, 0.0]
    assert len({text for (text,) in texts}) == 4
    assert texts[1] == [0]
    assert found["names"] == [True] * 4
    assert found["schema"]["description"] == "of the device"
    assert found["page"] == ["| `risk` | | yes | | of the device |"]
