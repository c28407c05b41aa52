"""Parts of the documentation that are made from the code: `make docs` writes them into their pages.

A part stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``. ``python -m tests.helpers.generated`` writes
all of them.
"""

import ast
import json
import os
import re
import socket
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from agents.topology import AGENTS
from pipeline.expressions.trees import type_name
from pipeline.features.aggregates import AGGREGATES, Aggregate
from pipeline.features.built_in import BUILT_IN_CARD, BUILT_IN_MERCHANT, Feature
from pipeline.features.declaration import packaged_declaration
from pipeline.features.feature_set import TRAINED, FeatureSet
from pipeline.observability.metric_declarations import DRIFT_METRICS, PREFIX, WORKER_METRICS, MetricDeclaration
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import SECTIONS, Settings
from pipeline.settings.features_file import read_features_file
from schemas.export import MESSAGES
from schemas.fields import DECLARED_FIELDS, READ_FIELDS, Kind
from schemas.topics import TOPICS, Topic

ROOT: Final = Path(__file__).resolve().parents[2]


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(columns)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(" ".join(["|", *(f"{cell} |" if cell else "|" for cell in cells)]) + "\n" for cells in lines)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _fence(text: str) -> str:
    return f"```mermaid\n{text}\n```\n"


# --- Settings ----------------------------------------------------------------------------------------------------


def settings_table() -> str:
    """Every setting with its default and meaning, by subject."""
    return "\n".join(
        f"## {subject}\n\n"
        + _table(
            ("variable", "default", "meaning"),
            (
                (f"`{_variable(name, field)}`", _default(field), str(field.description))
                for name, field in section.model_fields.items()
            ),
        )
        for subject, section in SECTIONS.items()
    )


def _variable(name: str, field: FieldInfo) -> str:
    """Return the environment variable that sets ``field``; the first of several."""
    if isinstance(field.validation_alias, AliasChoices):
        return str(field.validation_alias.choices[0])
    return f"{Settings.model_config['env_prefix']}{name}".upper()


def _default(field: FieldInfo) -> str:
    """Return the default as a person would write it into the environment."""
    if field.default_factory is socket.gethostname:
        return "the host's name"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, dict):
        return f"`{json.dumps(value)}`"
    return f"`{value}`" if str(value) else "empty"


# --- Metrics -----------------------------------------------------------------------------------------------------


def exported_metrics(declared: Mapping[str, MetricDeclaration]) -> dict[str, MetricDeclaration]:
    """The metrics of a table by the names that Prometheus sees."""
    return {f"{PREFIX}{name}{'_total' * (metric.kind == 'counter')}": metric for name, metric in declared.items()}


def _metrics_table(declared: Mapping[str, MetricDeclaration]) -> str:
    return _table(
        ("metric", "type", "labels", "meaning"),
        (
            (f"`{name}`", metric.kind, _code(metric.labels.split()), metric.meaning)
            for name, metric in exported_metrics(declared).items()
        ),
    )


def metrics_table() -> str:
    """Every metric of a worker."""
    return _metrics_table(WORKER_METRICS)


def drift_metrics_table() -> str:
    """Every metric of ``fraud-pipeline drift``."""
    return _metrics_table(DRIFT_METRICS)


def process_metrics_table() -> str:
    """The metrics of Prometheus' client library; those of the process exist on Linux alone."""
    families = [family for family in WorkerMetrics().registry.collect() if not family.name.startswith(PREFIX)]
    return _table(
        ("metric", "type", "labels", "meaning"),
        (
            (
                f"`{family.name}{'_total' * (family.type == 'counter')}`",
                family.type,
                _code(family.samples[0].labels),
                family.documentation,
            )
            for family in families
        ),
    )


# --- Features, topics, rooms -------------------------------------------------------------------------------------


_BUILT_IN: Final = (*BUILT_IN_CARD, *BUILT_IN_MERCHANT)


def aggregates_table() -> str:
    """Every aggregate that a declaration can name, with the field that it takes and its value."""
    return _table(
        ("aggregate", "field", "value in each window"),
        ((f"`{of.name}`", _field_of(of), of.definition.format(field="field")) for of in AGGREGATES.values()),
    )


def _field_of(aggregate: Aggregate) -> str:
    if aggregate.name in ("share", "usual_hour"):
        return "none"
    if aggregate.kind is None:
        return "any or none"
    return f"{type_name(aggregate.kind)}{f'; `{aggregate.field}` by default' if aggregate.field else ''}"


def features_table() -> str:
    """Return built-in features and packaged windows with units and meanings; the page defines them above."""
    return _table(
        ("feature", "by default", "unit", "meaning"),
        (
            (f"`{of.name}`", "yes" if of.name in TRAINED else "", of.unit, of.meaning)
            for of in (*_BUILT_IN, *_packaged_windows())
        ),
    )


def packaged_windows_table() -> str:
    """Definitions of the windows that the default set declares."""
    return _table(("feature", "value"), ((f"`{of.name}`", of.definition) for of in _packaged_windows()))


def _packaged_windows() -> list[Feature]:
    packaged = FeatureSet(packaged_declaration())
    return [feature for feature in packaged.declared if feature.name in packaged.window_features]


def _section(feature: Feature) -> str:
    """Return the part of the page that defines a feature."""
    return f"{feature.topic or feature.entity}-features"


def definitions_table(section: str) -> str:
    """Definitions of a section's features, one row for an aggregate whatever its entity and window."""
    groups: dict[str, list[Feature]] = {}
    for feature in _BUILT_IN:
        if _section(feature) == section:
            groups.setdefault(feature.aggregate, []).append(feature)
    return _table(("feature", "value"), ((_code(_labels(group)), group[0].definition) for group in groups.values()))


def _labels(group: Sequence[Feature]) -> list[str]:
    """Return names of features that differ in entity (``*``: both) or window (``W``: all)."""
    # A name without a window comes first: the others add theirs to it.
    first, *others = sorted(
        group, key=lambda feature: bool(feature.window) and not all(member.window for member in group)
    )
    if len({feature.entity for feature in group}) > 1:
        return [f"*_{first.aggregate}{'_W' if first.window else ''}"]
    return [first.name, *(f"_{feature.window}" for feature in others)]


def topics_table() -> str:
    """Every topic as it is declared."""
    return _table(
        ("topic", "key", "value", "written by", "partitions", "cleanup"),
        (
            (f"`{topic.name}`", _key(topic), _value(topic), topic.writer, topic.partitions_like, topic.cleanup_policy)
            for topic in TOPICS
        ),
    )


def _key(topic: Topic) -> str:
    return topic.key if " " in topic.key else f"`{topic.key}`"


def _value(topic: Topic) -> str:
    if topic.value is bytes:
        return "the original bytes"
    if isinstance(topic.value, str):
        return topic.value
    names = {kind: name for name, kind in MESSAGES.items()}
    return _code([names[topic.value]] if topic.value in names else [names[kind] for kind in get_args(topic.value)])


def fields_table() -> str:
    """Every field of a transaction; those of one meaning in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for field in DECLARED_FIELDS:
        if field.meaning:
            read = field in READ_FIELDS or field.kind is Kind.ATTRIBUTES
            marks = ("yes" if mark else "" for mark in (field.required, read, field.personal))
            default = "" if field.default is None else f"; `{field.default}` by default"
            rows.setdefault((*marks, field.meaning + default), []).append(field.name)
    return _table(
        ("field", "required", "read", "personal", "meaning"), ((_code(names), *cells) for cells, names in rows.items())
    )


def topology() -> str:
    """A transaction's way through agents and topics."""
    lines = [
        "flowchart LR",
        "    producers([producers]) --> transactions",
        "    analysts([analysts, chargebacks]) --> labels",
    ]
    for spec in AGENTS.values():
        reads, writes, follows = (" & ".join(t.name for t in ts) for ts in (spec.reads, spec.writes, spec.follows))
        lines.append(f"    {reads} --> {spec.name}[[{spec.name} agent]] --> {writes}")
        if follows:
            lines.append(f"    {follows} -.-> {spec.name}")
    return _fence("\n".join(lines))


def _contracts() -> list[dict[str, Any]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["tool"]["importlinter"]["contracts"])


def _contract(name: str) -> dict[str, Any]:
    return next(contract for contract in _contracts() if contract["id"] == name)


def _layers() -> list[list[str]]:
    """Return the packages and modules of each layer of the import contract, the highest layer first."""
    return [[name.strip("() ") for name in re.split("[:|]", layer)] for layer in _contract("layers")["layers"]]


def layers_diagram() -> str:
    """The layers of the import contract, with the pure core framed."""
    pure = set(_contract("pure-core")["source_modules"])
    nodes, core = [], []
    for number, names in enumerate(_layers()):
        shown = "<br>".join(" · ".join(_short(name) for name in names[at : at + 5]) for at in range(0, len(names), 5))
        (core if pure.issuperset(names) else nodes).append(f'l{number}["{shown}"]')
    chain = " --> ".join(f"l{number}" for number in range(len(nodes) + len(core)))
    framed = ['subgraph core ["pure core: no Kafka, files, clock"]', *(f"    {node}" for node in core), "end"]
    return _fence("\n    ".join(["flowchart TB", *nodes, *framed, chain]))


def packages_table() -> str:
    """Every package with the first line of its docstring."""
    packages = [name for layer in _layers() for name in layer if (ROOT / name.replace(".", "/")).is_dir()]
    names = (name for package in packages for name in (package, *_rooms(package)))
    return _table(("package", "content"), ((f"`{name.replace('.', '/')}/`", _summary(name)) for name in names))


def _rooms(package: str) -> list[str]:
    """The packages within a package, lowest last, in the order of the import contract that names them."""
    for contract in _contracts():
        if contract.get("containers") == [package]:
            layers = [name.strip() for layer in contract["layers"] for name in re.split("[|:]", layer)]
            return [f"{package}.{name}" for name in layers if (ROOT / package.replace(".", "/") / name).is_dir()]
    return []


def _short(name: str) -> str:
    return name.removeprefix("pipeline.")


def _summary(package: str) -> str:
    source = (ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    text = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
    return " ".join(text.replace("``", "`").split())


PACKAGED_FEATURES: Final = ROOT / "pipeline/data/features.json"


def packaged_features() -> str:
    """Return the default set as the package reads it: no parser of filters is loaded where none is needed."""
    content = read_features_file(PACKAGED_FEATURES.with_suffix(".toml").read_bytes(), "features.toml").content
    return msgspec.json.format(content, indent=1).decode() + "\n"


PARTS: Final[Mapping[str, Mapping[str, Callable[[], str]]]] = {
    "README.md": {"topology": topology},
    "docs/architecture.md": {"topology": topology, "layers": layers_diagram, "packages": packages_table},
    "docs/features.md": {
        **{section: partial(definitions_table, section) for section in map(_section, _BUILT_IN)},
        "packaged-windows": packaged_windows_table,
        "features": features_table,
    },
    "docs/declaring-features.md": {"aggregates": aggregates_table},
    "docs/metrics.md": {
        "metrics": metrics_table,
        "drift-metrics": drift_metrics_table,
        "process-metrics": process_metrics_table,
    },
    "docs/settings.md": {"settings": settings_table},
    "docs/wire-contract.md": {"topics": topics_table, "fields": fields_table},
}


def filled(page: str) -> str:
    """Return the text of ``page`` (its path in the repository) with its parts made anew.

    Raises:
        ValueError: the page lacks the marks of a part.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, part in PARTS[page].items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{page} lacks {begin.strip()} or {end}.")
        text = f"{before}{begin}{part()}{end}{after}"
    return text


if __name__ == "__main__":
    if (packaged := packaged_features()) != PACKAGED_FEATURES.read_text(encoding="utf-8"):
        PACKAGED_FEATURES.write_text(packaged, encoding="utf-8")
        # The pages show the features of another process, which has read the file.
        os.execv(sys.executable, [sys.executable, "-m", "tests.helpers.generated"])
    for path in PARTS:
        (ROOT / path).write_text(filled(path), encoding="utf-8")
