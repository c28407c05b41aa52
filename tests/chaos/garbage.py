"""Bytes that nobody but an attacker, or a colleague by mistake, writes to the topics that agents write."""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from pipeline.engine.scores.block_messages import write_messages
from schemas.messages import ProfiledTransaction, RecordPosition
from tests.helpers.blocks import features_block, sealed
from tests.helpers.logs import feature_row

DEEP = 5_000
DIGITS = 500
AHEAD = 40
"""A forged quarantine names an offset so far behind the end of its partition."""
FORGED_RANGE = 500
"""Offsets that a forged quarantine of a range names."""
FIRST_OFFSET_OF_NOBODY = 10**12
NO_DIGEST = "0" * 64
AT = "2024-03-01T00:00:00Z"
FAR = 4_070_908_800_000_000
"""2099, microseconds: whatever takes it for an event forgets all that it has."""

READERS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "rerouted": ("rerouted_headers", ("card",)),
    "accepted-labels": ("unreadable", ("card",)),
    "profiled": ("unreadable", ("score",)),
    "decisions": (None, ()),
    "features": ("unreadable", ("feedback",)),
    "examples": ("unreadable", ("learn",)),
    "control": (None, ()),
    "models": (None, ()),
    "progress": (None, ()),
}
"""By topic: code of the dead letter of what is no message of the agents', and which agents write one."""
AGENTS: dict[str, tuple[str, ...]] = {
    "transactions": ("card",),
    "labels": ("label",),
    "accepted-labels": ("card", "feedback"),
    "profiled": ("score",),
    "features": ("feedback",),
}
"""By topic: the agents whose quarantines are forged."""


class Garbage(NamedTuple):
    """A record, and what must become of it; ``dead`` None: it is refused, and nothing else."""

    topic: str
    kind: str
    key: bytes | None
    value: bytes | None
    dead: str | None
    agents: tuple[str, ...]


class Content(NamedTuple):
    """A version that was published in earnest."""

    name: str
    version: str
    digest: str
    payload: bytes


@dataclass(frozen=True)
class Target:
    """What forged records must know of the pipeline to be believed."""

    good: Content
    """A policy that is active, or was."""
    ends: Mapping[tuple[str, int], int]
    """Ends of the topics that agents read."""


def garbage(target: Target, number: int) -> Iterator[Garbage]:
    """All kinds for all topics; ``number`` makes those that name something new differ from time to time."""
    for topic, (dead, agents) in READERS.items():
        key = {"progress": b"card", "models": target.good.digest.encode()}.get(topic, b"nobody")
        for kind, value in _bytes(topic):
            yield Garbage(topic, kind, key, value, dead, agents)
    yield from _forged_control(target)
    yield from _forged_models(target, number)
    foreign, far = _foreign(number), _features()
    yield Garbage("profiled", "foreign kernel", b"nobody", foreign, "set_aside", ("score",))
    blocks = [("profiled", *item) for item in _damaged(foreign, far)]
    blocks += [("features", *item) for item in (*_damaged(far, foreign), *impossible())]
    for topic, kind, value in blocks:
        dead, agents = READERS[topic]
        yield Garbage(topic, kind, b"nobody", value, dead, agents)


def _damaged(block: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    """Bytes that begin as a block, and a block of ``other`` columns."""
    yield "damaged head", block[:40] + b"?" + block[41:]
    yield "damaged body", block[:-1] + b"?"
    yield "wrong checksum", block[:24] + bytes(8) + block[32:]
    yield "part of a head", block[:60]
    yield "part of a block", block[:-9]
    yield "more than a block", block + bytes(8)
    yield "block of another format", block[:4] + b"\xff" + block[5:]
    yield "block of another topic", other
    yield "columns of another topic", sealed(block[:4] + other[4:])


def impossible() -> Iterator[tuple[str, bytes]]:
    """Blocks of ``features`` under right checksums, with a value that no score agent writes."""
    yield "no score", _features(score=math.nan)
    yield "infinite feature", _features(features={"amount": math.inf})
    yield "no card", _features(card_id="")
    yield "long identifier", _features(transaction_id="x" * 2_000)
    yield "negative amount", _features(amount_base=-1.0)
    yield "before 1990", _features(event_time=datetime(1970, 1, 1, tzinfo=UTC))
    yield "no record", _features(source=RecordPosition(topic="transactions", partition=-1, offset=0))


def _bytes(topic: str) -> Iterator[tuple[str, bytes | None]]:
    """What no decoder may accept, whatever it is for."""
    kind = {"control": b"quarantine", "profiled": b"transaction"}.get(topic, b"card")
    yield "nested", b'{"kind":"%s","payload":%s1%s}' % (kind, b'{"a":' * DEEP, b"}" * DEEP)
    yield "nested lists", b"[" * DEEP
    yield "not UTF-8", b'{"kind":"%s","agent":"\xff\xfe","card_id":"\xff"}' % kind
    yield "empty", b""
    yield "null", None
    yield (
        "wrong kind",
        b'{"transaction_id":"t","card_id":"c","label":"fraud","source":"x","labelled_at":"%s"}' % (AT.encode()),
    )
    yield "no object", b'"control"'
    yield "absurd numbers", _absurd(topic)


def _absurd(topic: str) -> bytes:
    """Numbers that no field holds, in an otherwise complete message."""
    huge = b"9" * DIGITS
    fields: dict[str, Any] = {
        "control": {
            "kind": "quarantine",
            "agent": "card",
            "position": {"topic": "transactions", "partition": "HUGE", "offset": "HUGE"},
            "error_type": "x",
            "message": "x",
            "quarantined_at": "9" * 30,
        },
        "models": {
            "name": "river",
            "version": "x@HUGE",
            "digest": NO_DIGEST,
            "published_at": AT,
            "payload": {"weights": ["HUGE"], "examples_offset": "HUGE"},
        },
        "progress": {"agent": "card", "starts": {"transactions": "0.5"}, "ends": {"transactions": "HUGE"}},
        "profiled": {
            "kind": "label",
            "transaction_id": "t",
            "card_id": "c",
            "merchant_id": "m",
            "event_time_us": "HUGE",
            "known": "fraud",
            "known_at_us": "-HUGE",
            "source": {"topic": "labels", "partition": 0, "offset": "HUGE"},
            "label": {},
        },
    }.get(topic, {"transaction_id": "t", "card_id": "c", "event_time": "HUGE", "amount_base": "HUGE", "weight": "HUGE"})
    text = json.dumps(fields).encode()
    return text.replace(b'"-HUGE"', b"-" + huge).replace(b'"HUGE"', huge).replace(b'"0.5"', b"0.5")


def _forged_control(target: Target) -> Iterator[Garbage]:
    for (topic, partition), end in sorted(target.ends.items()):
        for agent in AGENTS.get(topic, ()):
            offset = end + AHEAD
            # Of no digest, as of a record without a value, and of another record's.
            for digest in (None, NO_DIGEST):
                yield _forged("forged quarantine", _quarantine(agent, topic, partition, offset, digest))
            forged = _quarantine(agent, topic, partition, offset, None, offset + FORGED_RANGE)
            yield _forged("forged range", forged)
    for name in ("policy", "lightgbm"):
        yield _forged("forged activation", _activation(name, "000000000000", NO_DIGEST))


def _forged(kind: str, item: dict[str, Any]) -> Garbage:
    return Garbage("control", kind, b"forged", json.dumps(item).encode(), None, ())


def _quarantine(
    agent: str, topic: str, partition: int, offset: int, digest: str | None, end: int | None = None
) -> dict[str, Any]:
    position = {"topic": topic, "partition": partition, "offset": offset} | ({} if end is None else {"end": end})
    of_what = {"kind": "quarantine", "agent": agent, "position": position}
    why = {"error_type": "ValueError", "message": "forged", "quarantined_at": AT}
    return {**of_what, **why} | ({} if digest is None else {"digest": digest})


def _activation(name: str, version: str, digest: str) -> dict[str, Any]:
    named = [{"name": name, "version": version, "digest": digest, "offset": 0}]
    return {"kind": "activation", "versions": named, "activated_at": AT}


def _forged_models(target: Target, number: int) -> Iterator[Garbage]:
    good = target.good
    yield _version("good digest, other content", good._replace(payload=b'{"threshold":0.0}'))
    policy = json.dumps({**json.loads(good.payload), "threshold": 2.0, "blend": number % 7 / 7}).encode()
    absurd = _content("policy", policy)
    yield _version("threshold 2.0", absurd)
    yield _forged("activation of threshold 2.0", _activation("policy", absurd.version, absurd.digest))
    river = json.dumps({"config": {"number": number}, "weights": [1e308], "examples_offset": 10**17}).encode()
    yield _version("River of nonsense", _content("river", river)._replace(version=f"{'0' * 12}@{10**17}"))


def _content(name: str, payload: bytes) -> Content:
    digest = hashlib.sha256(payload).hexdigest()
    return Content(name, digest[:12], digest, payload)


def _version(kind: str, content: Content) -> Garbage:
    front = {"name": content.name, "version": content.version, "digest": content.digest, "published_at": AT}
    value = json.dumps(front).encode()[:-1] + b', "payload":' + content.payload + b"}"
    return Garbage("models", kind, content.digest.encode(), value, None, ())


def _features(**changes: Any) -> bytes:
    """A decision of 2099; it would let everything be forgotten that waits for labels."""
    at = datetime(2099, 1, 1, tzinfo=UTC)
    return features_block([feature_row(0, at, **{"transaction_id": "nobody", "card_id": "nobody", **changes})])


def _foreign(number: int) -> bytes:
    """A transaction that another kernel version profiled; it would move every window and repeat of its partition."""
    message = ProfiledTransaction(
        transaction_id=f"foreign-{number}",
        card_id="nobody",
        merchant_id="nobody",
        event_time_us=FAR,
        amount_base_minor=100,
        rates_version="none",
        counts=True,
        card_features=struct.pack("<2d", 1.0, 2.0),
        kernel="foreign",
        case_id="nobody-1",
        case_sequence=1,
        source=RecordPosition(topic="transactions", partition=0, offset=FIRST_OFFSET_OF_NOBODY + number),
        ingested_at=datetime(2098, 1, 1, tzinfo=UTC),
        transaction=msgspec.Raw(b'{"event_time":"2098-12-31T00:00:00Z","amount":1,"currency":"EUR"}'),
    )
    return write_messages([message])
