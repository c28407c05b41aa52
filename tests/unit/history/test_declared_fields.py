"""Fields that declared features read arrive in columns from whatever holds transactions."""

from tests.helpers.declared_fields import ODD, PLAIN
from tests.helpers.worker import printed_json


def test_fields_of_declared_features_arrive_from_every_reader() -> None:
    found = printed_json("tests.helpers.declared_fields")
    plain = [list(values) for values in PLAIN]
    odd = [["32", "Österreich", 0.5], ["BE", None, None]]
    assert found["scanner"] == plain
    assert found["plain"][: len(PLAIN)] == [True] * len(PLAIN)
    assert found["accepted"] == found["decoder"] == [*plain, *odd]
    # A CSV cannot tell an empty text from none.
    assert found["csv"] == [[country or None, shop or None, risk] for country, shop, risk in plain]
    assert found["parquet"] == found["objects"] == found["frame"] == found["replay"] == plain
    # The packaged set reads the hour.
    assert found["inputs"] == ["hour", "country", "shop"]
    _, countries, shops = zip(*found["codes"], strict=True)
    assert countries[0] == countries[5]
    assert len({*countries}) == 5
    assert [code is None for code in shops] == [False, True, False, False, False, True]
    assert all(0 <= code < 2**52 and code == int(code) for code in (*countries, *shops) if code is not None)
    # Where country = 'BE' or shop = 'web', as windows of merchants read it; the last one has no risk.
    assert found["carried"] == [0.25, *[None] * 5]
    assert len(found["carried"]) == len(PLAIN) + len(ODD)
    names = ["account_id", "authorisation", "channel", "country", "device_id", "ip", "mcc", "shop", "unread"]
    assert found["declared"] == names, "rules may read any"
