"""A slow reader of the blocks of ``profiled`` and ``features``, written from ``docs/wire-contract.md`` alone."""

import base64
import json
import math
import struct
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

import xxhash

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Form(NamedTuple):
    """Columns of a kind of block."""

    magic: bytes
    wide: tuple[str, ...]
    narrow: tuple[str, ...]
    texts: tuple[str, ...]
    codes: tuple[str, ...]


PROFILED = Form(
    b"FPBK",
    ("event_time_us", "amount_base_minor", "case_sequence", "ingested_at_us", "input_offset", "known_at_us"),
    ("producer_offset_min", "input_partition"),
    ("transaction_id", "card_id", "merchant_id", "case_id", "amount", "currency", "transaction_type", "original"),
    ("kind", "counts", "known", "rates", "input_topic"),
)
FEATURES = Form(
    b"FPFB",
    ("event_time_us", "amount_base_minor", "source_offset"),
    ("producer_offset_min", "source_partition", "log_row"),
    ("transaction_id", "card_id", "merchant_id"),
    ("source_topic", "lightgbm", "river", "policy", "rates"),
)


class Content(NamedTuple):
    """Content of a block."""

    kernel: str
    names: list[str]
    numbers: list[bytes]
    """Of each row that has any."""
    rows: list[dict[str, Any]]
    """Columns by name, those of ``source`` behind ``of_``; texts are bytes."""


class _Bytes:
    def __init__(self, value: bytes) -> None:
        self.value, self.at = value, 0

    def read(self, kinds: str) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{kinds}")
        found = struct.unpack(f"<{kinds}", self.value[self.at : self.at + size])
        self.at += size
        return found


def read_content(value: bytes, form: Form) -> Content:
    """The columns of a block; raises ``AssertionError`` or ``struct.error`` for what is none."""
    data = _Bytes(value)
    magic, version, width, n, head_bytes, body_sum, head_sum = data.read("4sHHIIQQ")
    assert (magic, version) == (form.magic, 1)
    head, body = value[32 : 32 + head_bytes], value[32 + head_bytes :]
    assert xxhash.xxh3_64_intdigest(value[:24] + head) == head_sum
    assert xxhash.xxh3_64_intdigest(body) == body_sum
    with_numbers, text_bytes, kernel_bytes, name_count, name_bytes = data.read("IIHHI")
    columns: dict[str, Any] = {"of_offset": data.read(f"{n}q"), "of_partition": data.read(f"{n}i")}
    columns["of_topic"] = data.read(f"{n}B")
    name_lengths = data.read(f"{name_count}H")
    kernel, packed = (data.read(f"{size}s")[0] for size in (kernel_bytes, name_bytes))
    names = []
    for length in name_lengths:
        names.append(packed[:length].decode())
        packed = packed[length:]
    data.at = 32 + head_bytes
    columns |= {name: data.read(f"{n}q") for name in form.wide}
    numbers = [data.read(f"{8 * width}s")[0] for _ in range(with_numbers)]
    columns |= {name: data.read(f"{n}i") for name in form.narrow}
    lengths = {name: data.read(f"{n}i") for name in form.texts}
    columns |= {name: data.read(f"{n}B") for name in form.codes}
    columns |= {name: [data.read(f"{length}s")[0] for length in lengths[name]] for name in form.texts}
    assert data.at == len(value)
    assert text_bytes == sum(map(sum, lengths.values()))
    return Content(
        kernel.decode(), names, numbers, [{name: column[row] for name, column in columns.items()} for row in range(n)]
    )


def read_block(value: bytes) -> list[dict[str, Any]]:
    """The rows of a block of ``profiled``, each as the JSON that `fraud-pipeline inspect` shows."""
    content = read_content(value, PROFILED)
    numbers = list(content.numbers)
    rows = []
    for row in content.rows:
        source = {"topic": content.names[row["of_topic"]], "partition": row["of_partition"], "offset": row["of_offset"]}
        found: dict[str, Any] = {name: row[name].decode() for name in ("transaction_id", "card_id", "merchant_id")}
        found |= {"schema_version": 1, "event_time_us": row["event_time_us"], "source": source}
        original = json.loads(row["original"])
        if row["kind"] == 1:
            found |= {"kind": "label", "known": ("legitimate", "fraud", "none")[row["known"]]}
            rows.append({**found, "known_at_us": row["known_at_us"], "label": original})
            continue
        read = {
            "topic": content.names[row["input_topic"]],
            "partition": row["input_partition"],
            "offset": row["input_offset"],
        }
        rows.append(
            {
                **found,
                "kind": "transaction",
                "amount_base_minor": row["amount_base_minor"],
                "rates_version": content.names[row["rates"]],
                "counts": bool(row["counts"] & 1),
                "outlier": bool(row["counts"] & 2),
                "card_features": base64.b64encode(numbers.pop(0)).decode(),
                "kernel": content.kernel,
                "case_id": row["case_id"].decode(),
                "case_sequence": row["case_sequence"],
                "ingested_at": _text(row["ingested_at_us"], 0),
                "transaction": original,
                "read": None if read == source else read,
            }
        )
    return rows


def read_features(value: bytes) -> list[dict[str, Any]]:
    """The rows of a block of ``features``, each as the JSON that `fraud-pipeline inspect` shows."""
    content = read_content(value, FEATURES)
    assert len(content.numbers) == len(content.rows)
    rows = []
    for row, packed in zip(content.rows, content.numbers, strict=True):
        numbers = struct.unpack(f"<{len(packed) // 8}d", packed)
        named = dict(zip(content.names[: len(numbers)], numbers, strict=True))
        assert len(named) == len(numbers)
        named.pop("wait_clock_us", None)
        assert content.names[:3] == ["logit", "river_logit", "score"]
        logit, river_logit, score = (named.pop(name) for name in content.names[:3])
        assert content.names[row["of_topic"]] == "profiled"
        versions = {name: content.names[row[name]] for name in ("lightgbm", "river", "policy")}
        rows.append(
            {
                "schema_version": 1,
                **{name: row[name].decode() for name in FEATURES.texts},
                "event_time": _text(row["event_time_us"], row["producer_offset_min"]),
                "amount_base": row["amount_base_minor"] / 100,
                "score": score,
                "logit": logit,
                "river_logit": river_logit,
                "features": {name: None if math.isnan(number) else number for name, number in named.items()},
                "versions": {**versions, "kernel": content.kernel, "rates": content.names[row["rates"]]},
                "source": {
                    "topic": content.names[row["source_topic"]],
                    "partition": row["source_partition"],
                    "offset": row["source_offset"],
                },
                "log": {"partition": row["of_partition"], "offset": row["of_offset"], "row": row["log_row"]},
            }
        )
    return rows


def _text(time_us: int, offset_min: int) -> str:
    zone = timezone(timedelta(minutes=offset_min))
    return (EPOCH + timedelta(microseconds=time_us)).astimezone(zone).isoformat().replace("+00:00", "Z")
