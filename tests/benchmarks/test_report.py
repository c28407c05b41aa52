"""Tables, plots and the page that are made from ``build/bench.json``: those of the published figures."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.backtest.report.svg import BACKGROUND, COLOURS, INK, QUIET_INK, Bar, Series, bars, lines
from pipeline.broker.local import read_json
from tests.benchmarks import docs, report
from tests.benchmarks.bounds import check, read_bounds
from tests.benchmarks.plots import PLOTS, drawn
from tests.benchmarks.tables import COLUMNS, Table, as_markdown, as_text
from tests.helpers.colours import contrast

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def measured() -> dict[str, Any]:
    return read_json(docs.FIGURES)


def all_tables() -> list[Table]:
    measured = read_json(docs.FIGURES)
    made = [table(measured[part]) for part, tables in report.PARTS.items() for table in tables.values()]
    return [*made, report.machines(measured), report.versions(measured), report.bounds(check(measured, read_bounds()))]


@pytest.mark.parametrize("table", all_tables(), ids=lambda table: table.title)
def test_every_table_fits_a_terminal_and_a_page(table: Table) -> None:
    assert table.rows
    text = as_text(table).splitlines()
    assert max(map(len, text)) <= COLUMNS
    assert {len(row) for row in table.rows} == {len(table.head)}
    title, nothing, *markdown = as_markdown(table).splitlines()
    assert (title, nothing) == (f"{table.title}:", "")
    assert {line.count("|") for line in markdown[: 2 + len(table.rows)]} == {len(table.head) + 1}


def test_a_table_is_aligned_and_wraps_its_last_words() -> None:
    rows = (("a", "1", "word " * 30), ("long name", "1,000", ""))
    shown = as_text(Table("T", ("name", "n", "why"), rows, ("note",), frozenset({0, 2}))).splitlines()
    assert shown[0] == "T"
    assert shown[1].startswith("name           n  why")
    assert shown[3].startswith("a              1  word word")
    assert shown[4].startswith(" " * 18 + "word")
    assert shown[-1] == "note"


def test_engines_that_were_left_out_say_why(measured: dict[str, Any]) -> None:
    measured["throughput"]["failed"] = {"another": "it ended with status 1: " + "a long reason " * 20}
    table = report.throughput(measured["throughput"])
    rates = [float(row[1].replace(",", "")) for row in table.rows]
    assert rates == sorted(rates, reverse=True)
    assert any("it ended with status 1" in note for note in table.notes)


def test_rates_that_are_too_high_have_no_percentiles_and_stages_are_of_5000_or_the_highest(
    measured: dict[str, Any],
) -> None:
    part = measured["latency"]
    part["rows"][3] |= {"keeps_up": False, "decisions_ms": None, "behind_at_end": 54_321, "answered": 0.87}
    assert part["rows"][3]["rate"] == 10_000
    assert any("exactly-once, 10,000/s: does not keep up: 54,321 behind" in it for it in report.latency(part).notes)
    assert "at 5,000 a second" in report.stages(part).title
    part["rows"] = [row for row in part["rows"] if row["rate"] < 5_000]
    assert "at 2,000 a second" in report.stages(part).title


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_sound_and_its_text_lies_inside(name: str, measured: dict[str, Any]) -> None:
    for given in (measured, {}):
        root = ElementTree.fromstring(drawn(given)[name])
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        texts = root.findall(f"{SVG}text")
        assert root.findtext(f"{SVG}title")
        assert texts
        for text in texts:
            assert 0 < float(text.attrib["x"]) < width
            assert 0 < float(text.attrib["y"]) < height
        for shape in root.findall(f"{SVG}rect"):
            assert float(shape.attrib.get("x", 0)) + float(shape.attrib["width"]) <= width + 0.1


def test_bars_and_axes_are_to_scale_and_colours_stand_out() -> None:
    assert all(contrast(colour, BACKGROUND) >= 4.5 for colour in (INK, QUIET_INK, *COLOURS))
    root = ElementTree.fromstring(bars("t", [Bar("a", 10.0, "10"), Bar("b", 5.0, "5", number=0)]))
    _, first, second = root.findall(f"{SVG}rect")
    assert float(second.attrib["width"]) == pytest.approx(float(first.attrib["width"]) / 2, abs=0.1)
    assert first.attrib["fill"] != second.attrib["fill"]
    series = [Series("s", ((1.0, 1.0), (10.0, 10.0), (100.0, 100.0)))]
    path = ElementTree.fromstring(lines("t", "x", "y", series, log_x=True, log_y=True)).find(f"{SVG}polyline")
    assert path is not None
    (x1, y1), (x2, y2), (x3, y3) = (tuple(map(float, point.split(","))) for point in path.attrib["points"].split())
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2


def test_the_page_and_its_plots_are_those_of_the_committed_figures(measured: dict[str, Any]) -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    assert docs.filled(page, measured) == page, "run `make bench-docs`, or mend what it makes"
    assert {path.stem: path.read_text(encoding="utf-8") for path in docs.PLACE.glob("*.svg")} == drawn(measured)
    assert set(re.findall(r"\]\(benchmarks/([a-z-]+)\.svg\)", page)) == set(PLOTS)
    assert docs.filled(page, {}).count(docs.UNMEASURED) == len(docs.blocks({}))
    for other in (page.replace("bench cards", "bench carts"), page.replace("<!-- bench cards begin -->", "")):
        with pytest.raises(docs.UnknownBlock):
            docs.filled(other, {})


def test_page_plots_and_figures_are_written_together(
    measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(docs.filled(docs.PAGE.read_text(encoding="utf-8"), {}), encoding="utf-8")
    for name, place in (("PAGE", page), ("PLACE", tmp_path / "made"), ("FIGURES", tmp_path / "made" / "bench.json")):
        monkeypatch.setattr(docs, name, place)
    docs.write(measured)
    assert read_json(docs.FIGURES) == measured
    assert docs.UNMEASURED not in page.read_text(encoding="utf-8")
    assert {path.stem for path in docs.PLACE.glob("*.svg")} == set(PLOTS)


def test_figures_of_a_quick_run_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"latency": {"taken": {"quick": true}}}', encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["docs", str(path)])
    with pytest.raises(SystemExit, match=r"latency of .* quick run"):
        docs.main()
