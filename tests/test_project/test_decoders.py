"""Types that workers decode are known to msgspec before there are threads.

It finds out about a type when it is first asked for it, and where several threads ask at once it can crash (seen with
0.22: exit code -11 of workers that had just started).
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OF_WORKERS = (
    "agents",
    "schemas",
    *(f"pipeline/{name}" for name in ("decision", "engine", "features", "kafka", "learning", "scoring", "state")),
)


def typed_decoding(source: str) -> Iterator[int]:
    """Lines in functions that decode by a type, or make a decoder."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    typed = called in ("decode", "convert") and any(given.arg == "type" for given in node.keywords)
                    if typed or called == "Decoder":
                        yield node.lineno


@pytest.mark.parametrize(
    "source",
    [
        "def read(data):\n    return msgspec.json.decode(data, type=Kind)",
        "def read(data):\n    return msgspec.convert(data, type=Kind)",
        "read = lambda data: Decoder(Kind).decode(data)",
    ],
)
def test_a_type_that_is_first_met_in_a_function_is_found(source: str) -> None:
    assert list(typed_decoding(source))


def test_a_decoder_of_a_module_is_none() -> None:
    assert not list(typed_decoding("decode = Decoder(Kind).decode\ndef read(data):\n    return decode(data)"))


def test_workers_decode_by_decoders_of_their_modules() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for directory in OF_WORKERS
        for path in (ROOT / directory).glob("**/*.py")
        for line in typed_decoding(path.read_text(encoding="utf-8"))
    ]
    assert not found, "make a decoder where the module is imported"
