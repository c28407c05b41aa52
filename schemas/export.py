"""JSON Schemas of every message, for programs in other languages: ``python -m schemas.export`` writes them.

They are written into ``schemas/json`` of this checkout, or into the directory that is given as the argument.
"""

import sys
from importlib.resources import files
from typing import Any, Final

import msgspec

from schemas import messages

MESSAGES: Final[dict[str, Any]] = {
    "transaction": messages.Transaction,
    "label": messages.Label,
    "profiled": messages.Profiled,
    "decision": messages.Decision,
    "decision-features": messages.DecisionFeatures,
    "alert": messages.Alert,
    "case-event": messages.CaseEvent,
    "list-change": messages.ListChange,
    "example": messages.Example,
    "model-version": messages.ModelVersion,
    "progress": messages.Progress,
    "control": messages.Control,
}
"""Name of each schema, and the type that it describes."""

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_MSGSPEC_DECIMAL: Final = {"type": "string", "format": "decimal"}
_WRITTEN_AMOUNT: Final = {"type": "number", "minimum": 0}
_ACCEPTED_AMOUNT: Final = {
    "anyOf": [
        _WRITTEN_AMOUNT,
        {"type": "string", "pattern": "^(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"},
    ],
}


def exported() -> dict[str, bytes]:
    """File name -> JSON Schema (draft 2020-12), indented, of every message."""
    return {f"{name}.json": _schema(name) for name in MESSAGES}


def _schema(name: str) -> bytes:
    schema = msgspec.json.schema(MESSAGES[name])
    # msgspec describes a decimal as the string that it would write by default; the codec writes numbers.
    amount = _ACCEPTED_AMOUNT if MESSAGES[name] is messages.Transaction else _WRITTEN_AMOUNT
    for definition in schema["$defs"].values():
        for field, shape in definition["properties"].items():
            if shape.items() >= _MSGSPEC_DECIMAL.items():
                described = {name: text for name, text in shape.items() if name not in _MSGSPEC_DECIMAL}
                definition["properties"][field] = {**amount, **described}
            elif shape == {}:
                # Raw bytes: an embedded message or payload, which is always an object.
                definition["properties"][field] = {"type": "object"}
    document = {"$schema": DIALECT, "$id": f"urn:fraud-pipeline:v1:{name}", **schema}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def main(arguments: list[str]) -> None:
    """Write every schema."""
    directory = arguments[0] if arguments else str(files(__package__) / "json")
    for name, content in exported().items():
        with open(f"{directory}/{name}", "wb") as file:
            file.write(content)
    sys.stdout.write(f"Wrote {len(MESSAGES)} schemas to {directory}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
