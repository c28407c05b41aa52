"""What is kept of a decision holds all that an example takes over, in fewer bytes."""

import msgspec
import pytest

from pipeline.engine.kept import DecisionPacker, read_decision, unpack_decision
from pipeline.features.catalogue import FEATURES
from tests.helpers.logs import decision, decode_decision

SERVED = {name: None if number % 3 else number / 7 for number, name in enumerate(FEATURES)}


@pytest.mark.parametrize(
    "features", [SERVED, {**SERVED, "one more": 1.0}, dict(reversed(SERVED.items())), {"amount": 2.0}, {}]
)
def test_an_example_can_be_made_of_what_is_kept(features: dict[str, float | None]) -> None:
    value = decision(3, features=features)
    (packed,) = DecisionPacker().pack([read_decision(value)])
    kept, served = unpack_decision(packed), decode_decision(value)
    assert kept.named_features() == features
    assert list(kept.named_features()) == list(features)
    for name in kept.__struct_fields__:
        if name != "features":
            assert getattr(kept, name) == getattr(served, name)


def test_the_names_of_the_features_are_not_kept() -> None:
    value = decision(3, features=SERVED)
    (packed,) = DecisionPacker().pack([read_decision(value)])
    assert len(packed) < len(value) / 2
    assert not [name for name in FEATURES if f'"{name}"'.encode() in packed]


def test_an_instant_is_kept_in_the_zone_in_which_it_was_written() -> None:
    value = decision(3).replace(b"Z", b"+02:00", 1)
    (packed,) = DecisionPacker().pack([read_decision(value)])
    assert msgspec.json.encode(unpack_decision(packed).event_time).endswith(b'+02:00"')


def test_a_decision_without_what_an_example_needs_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="versions"):
        read_decision(decision(3).replace(b'"versions"', b'"other"'))
