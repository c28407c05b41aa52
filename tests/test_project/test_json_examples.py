"""Every JSON object on a page is what its schema says: a message, a setting, or another form that the code decodes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.settings import Settings
from schemas.export import MESSAGES
from schemas.messages import RecordPosition

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix() for name in (".", "docs", "docs/guides") for path in (ROOT / name).glob("*.md")
]
KINDS = {**MESSAGES, "position": RecordPosition}
SETTING = re.compile(r"(FRAUD_PIPELINE_[A-Z_]+?)(?:_FILE)?(?:='|=\S+\s+# |` \| `)$")
PYTHON = re.compile(r"^```python$.*?^```$", re.MULTILINE | re.DOTALL)
NOT_DECLARED = {
    ("docs/evaluation.md", "rows"): "a result of make evaluate",
    ("docs/lists.md", "list_hits"): "a part of a decision",
    ("docs/models.md", "regime"): "labels in the metadata of a version",
    ("docs/webhook.md", "type"): "the body of a webhook, with a reason that is cut short",
    ("docs/operating.md", "status"): "an answer of /readyz",
    ("docs/operating.md", "v"): "metadata of a committed offset",
    ("docs/operating.md", "version"): "a file of kafka-leader-election",
    ("docs/wire-contract.md", "rows"): "the header that inspect shows",
}
"""Objects by page and first name that no message and no setting is, and what they are."""


def examples() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each object with its page and what stands before it on its line."""
    decoder = json.JSONDecoder()
    for page in PAGES:
        text = PYTHON.sub("", (ROOT / page).read_text(encoding="utf-8"))
        end = 0
        for found in re.finditer(r'\{\s*"\w', text):
            if found.start() >= end:
                # An abridged object has dots, and is none.
                try:
                    value, end = decoder.raw_decode(text, found.start())
                except json.JSONDecodeError:
                    continue
                yield page, text[text.rfind("\n", 0, found.start()) + 1 : found.start()], value


def fields_of(kind: Any) -> dict[str, bool]:
    """Return the fields of a message, and whether it needs each; none for a union."""
    known = msgspec.structs.fields(kind) if isinstance(kind, type) else ()
    return {field.encode_name: field.required for field in known}


def checked_as(page: str, before: str, example: dict[str, Any]) -> str:
    """Return what an object was decoded as."""
    if setting := SETTING.search(before):
        Settings.model_validate({setting[1].removeprefix("FRAUD_PIPELINE_").lower(): example})
        return setting[1]
    if (page, next(iter(example))) in NOT_DECLARED:
        return NOT_DECLARED[page, next(iter(example))]
    fitting = [
        name
        for name, kind in KINDS.items()
        if (fields := fields_of(kind))
        and {name for name, required in fields.items() if required} <= example.keys() <= fields.keys()
    ]
    assert fitting, f"{page} has an object that is no message: {example}"
    msgspec.json.decode(json.dumps(example), type=KINDS[fitting[0]])
    return fitting[0]


def test_every_object_is_what_its_schema_says() -> None:
    found = [checked_as(*example) for example in examples()]
    assert {"transaction", "label", "position", "FRAUD_PIPELINE_LABEL_TOPICS", "FRAUD_PIPELINE_KAFKA_CONFIG"} <= {
        *found
    }
    assert {*NOT_DECLARED.values()} <= {*found}


@pytest.mark.parametrize(
    ("before", "example"),
    [
        ("", {"transaction_id": "t", "card_id": "c", "label": "fraud"}),
        ("", {"topic": "transactions", "partition": 0, "offset": 1, "until": 2}),
        ("FRAUD_PIPELINE_LABEL_TOPICS='", {"decisions": ["analyst"]}),
    ],
)
def test_an_object_that_its_schema_does_not_allow_is_found(before: str, example: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        checked_as("docs/a.md", before, example)
