"""A feature is declared once; the kernel, the reference and the pages follow from its declaration."""

import re
from pathlib import Path

import pytest

from pipeline.features.built_in import BUILT_IN_CARD, BUILT_IN_MERCHANT, CARD, MERCHANT, STATISTICS, WINDOWS_US, Feature
from pipeline.features.catalogue import ATTRIBUTE_FEATURES, BY_NAME, DECLARED, FEATURES, WINDOW_FEATURES
from pipeline.features.declaration import BUILT_IN
from tests.helpers.expected import CARRIED
from tests.helpers.generated import PARTS

FEATURES_ROOM = Path(__file__).parents[3] / "pipeline" / "features"
KERNELS = ("card_kernel.py", "merchant_kernel.py", "label_features.py")
LINE = re.compile(r"row\[(?:CARD|MERCHANT)\.(\w+)\](?= =)")
WINDOW_STATISTICS = {
    f"{entity}_{statistic}_{window}"
    for entity in ("card", "merchant")
    for statistic in STATISTICS
    for window in WINDOWS_US
}


def test_every_declared_feature_has_a_line_in_a_kernel() -> None:
    """Those of windows have theirs in a loop over the windows."""
    written = {name for file in KERNELS for name in LINE.findall((FEATURES_ROOM / file).read_text(encoding="utf-8"))}
    assert written | WINDOW_STATISTICS == {*BUILT_IN}
    assert written & WINDOW_STATISTICS == set()


def test_the_others_are_declared_windows_and_what_travels_for_them() -> None:
    others = {name for name in FEATURES if name not in BUILT_IN}
    assert others - CARRIED == {*ATTRIBUTE_FEATURES, *WINDOW_FEATURES}


@pytest.mark.parametrize(("columns", "names"), [(CARD, BUILT_IN_CARD), (MERCHANT, BUILT_IN_MERCHANT)])
def test_a_column_has_the_name_of_its_feature(columns: object, names: tuple[Feature, ...]) -> None:
    assert [getattr(columns, feature.name) for feature in names] == list(range(len(names)))


@pytest.mark.parametrize(("entity", "columns"), [("card", CARD), ("merchant", MERCHANT)])
def test_statistics_of_windows_follow_each_other(entity: str, columns: object) -> None:
    """The kernel writes them from the first one on."""
    first = getattr(columns, f"{entity}_count_1h")
    names = [f"{entity}_{statistic}_{window}" for window in WINDOWS_US for statistic in STATISTICS]
    assert [getattr(columns, name) for name in names] == list(range(first, first + len(names)))


def test_names_say_entity_aggregate_and_window() -> None:
    assert len(BY_NAME) == len(DECLARED) == len(FEATURES)
    assert BY_NAME["card_outlier_count_7d"][:2] == ("card", "outlier_count")
    assert BY_NAME["hour"].entity == "transaction"
    assert {*WINDOWS_US} < {feature.window for feature in DECLARED if feature.window}
    assert all(feature.name.endswith(f"_{feature.window}") for feature in DECLARED if feature.window)


def test_every_declaration_is_on_the_page() -> None:
    tables = {name: table() for name, table in PARTS["docs/features.md"].items()}
    defined = "".join(table for name, table in tables.items() if name != "features")
    for feature in (feature for feature in DECLARED if feature.name not in CARRIED):
        assert f"| {feature.definition} |" in defined
        assert f"| {feature.unit} | {feature.meaning} |" in tables["features"]
