"""Every client is built with the settings: else its command fails on a cluster with TLS or SASL."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for room in ("pipeline", "agents") for path in sorted((ROOT / room).rglob("*.py"))]


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def optional_settings() -> set[str]:
    """Names of the functions of `pipeline.kafka` whose keyword ``settings`` may be left out."""
    return {
        node.name
        for path, tree in trees().items()
        if "kafka" in path.parts
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if argument.arg == "settings" and default is not None
    }


def calls_without() -> Iterator[str]:
    names = optional_settings()
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in names and "settings" not in {keyword.arg for keyword in node.keywords}:
                    yield f"{path.relative_to(ROOT)}:{node.lineno} calls {called} without settings"


def test_no_client_is_built_without_the_settings() -> None:
    assert {"admin_client", "consumer_config", "producer_config", "cluster_is_up"} <= optional_settings()
    assert list(calls_without()) == []


def test_only_the_configurations_of_one_module_name_brokers() -> None:
    found = [
        str(path.relative_to(ROOT)) for path in SOURCES if '"bootstrap.servers"' in path.read_text(encoding="utf-8")
    ]
    assert found == ["pipeline/kafka/cluster/clients.py"]
