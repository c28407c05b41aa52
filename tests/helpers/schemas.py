"""Validation against the JSON Schemas of messages.

`jsonschema` builds a grammar of IRIs when it is imported, for seconds: only a process that validates imports it.
"""

from typing import Any


def check_schema(schema: dict[str, Any]) -> None:
    """Raise unless ``schema`` is a JSON Schema."""
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema)


def violations(document: object, schema: dict[str, Any]) -> list[str]:
    """Return what of ``document``, formats included, does not fit ``schema``."""
    from jsonschema import Draft202012Validator, FormatChecker

    found = Draft202012Validator(schema, format_checker=FormatChecker()).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]
