"""A slow reader of the blocks of ``profiled``, written from ``docs/wire-contract.md`` alone."""

import base64
import json
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import xxhash

WIDE = ("event_time_us", "amount_base_minor", "case_sequence", "ingested_at_us", "input_offset", "known_at_us")
NARROW = ("stated_offset_min", "input_partition")
TEXTS = ("transaction_id", "card_id", "merchant_id", "case_id", "amount", "currency", "transaction_type", "original")
CODES = ("kind", "counts", "known", "rates", "input_topic")


class _Bytes:
    def __init__(self, value: bytes) -> None:
        self.value, self.at = value, 0

    def read(self, kinds: str) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{kinds}")
        found = struct.unpack(f"<{kinds}", self.value[self.at : self.at + size])
        self.at += size
        return found


def read_block(value: bytes) -> list[dict[str, Any]]:
    """The rows of a block, each as the JSON that `fraud-pipeline inspect` shows."""
    data = _Bytes(value)
    magic, form, width, n, head_bytes, body_sum, head_sum = data.read("4sHHIIQQ")
    assert (magic, form) == (b"FPBK", 1)
    head, body = value[32 : 32 + head_bytes], value[32 + head_bytes :]
    assert xxhash.xxh3_64_intdigest(value[:24] + head) == head_sum
    assert xxhash.xxh3_64_intdigest(body) == body_sum
    transactions, text_bytes, kernel_bytes, name_count, name_bytes = data.read("IIHHI")
    sources = list(zip(data.read(f"{n}q"), data.read(f"{n}i"), data.read(f"{n}B"), strict=True))
    name_lengths = data.read(f"{name_count}H")
    kernel, packed = (data.read(f"{size}s")[0] for size in (kernel_bytes, name_bytes))
    names = []
    for length in name_lengths:
        names.append(packed[:length].decode())
        packed = packed[length:]
    data.at = 32 + head_bytes
    wide = {name: data.read(f"{n}q") for name in WIDE}
    features = [data.read(f"{8 * width}s")[0] for _ in range(transactions)]
    narrow = {name: data.read(f"{n}i") for name in NARROW}
    lengths = {name: data.read(f"{n}i") for name in TEXTS}
    codes = {name: data.read(f"{n}B") for name in CODES}
    texts = {name: [data.read(f"{length}s")[0] for length in lengths[name]] for name in TEXTS}
    assert data.at == len(value)
    assert text_bytes == sum(map(sum, lengths.values()))

    rows = []
    for row, (offset, partition, topic) in enumerate(sources):
        source = {"topic": names[topic], "partition": partition, "offset": offset}
        found: dict[str, Any] = {
            name: texts[name][row].decode() for name in ("transaction_id", "card_id", "merchant_id")
        }
        found |= {"schema_version": 1, "event_time_us": wide["event_time_us"][row], "source": source}
        original = json.loads(texts["original"][row])
        if codes["kind"][row] == 1:
            known = ("legitimate", "fraud", "none")[codes["known"][row]]
            rows.append(
                {**found, "kind": "label", "known": known, "known_at_us": wide["known_at_us"][row], "label": original}
            )
            continue
        read = {
            "topic": names[codes["input_topic"][row]],
            "partition": narrow["input_partition"][row],
            "offset": wide["input_offset"][row],
        }
        ingested_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=wide["ingested_at_us"][row])
        rows.append(
            {
                **found,
                "kind": "transaction",
                "amount_base_minor": wide["amount_base_minor"][row],
                "rates_version": names[codes["rates"][row]],
                "counts": bool(codes["counts"][row]),
                "card_features": base64.b64encode(features.pop(0)).decode(),
                "kernel": kernel.decode(),
                "case_id": texts["case_id"][row].decode(),
                "case_sequence": wide["case_sequence"][row],
                "ingested_at": ingested_at.isoformat().replace("+00:00", "Z"),
                "transaction": original,
                "read": None if read == source else read,
            }
        )
    return rows
