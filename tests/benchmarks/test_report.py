"""Tables, plots and the page that are made from ``build/bench.json``."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.backtest.report.svg import BACKGROUND, COLOURS, INK, QUIET_INK, Bar, Series, bars, contrast, lines
from pipeline.broker.local import read_json
from tests.benchmarks import docs, report
from tests.benchmarks.bounds import check, read_bounds
from tests.benchmarks.example import example, taken
from tests.benchmarks.plots import PLOTS, drawn
from tests.benchmarks.tables import COLUMNS, Table, as_markdown, as_text

SVG = "{http://www.w3.org/2000/svg}"


def all_tables() -> list[Table]:
    measured = example()
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


def test_the_fastest_engine_comes_first_and_those_left_out_say_why() -> None:
    table = report.throughput(example()["throughput"])
    rates = [float(row[1].replace(",", "")) for row in table.rows]
    assert rates == sorted(rates, reverse=True)
    assert table.rows[0][0] == "bare"
    assert table.rows[0][3] == "1"
    assert any("it ended with status 1" in note for note in table.notes)


def test_a_rate_that_is_too_high_has_no_percentiles() -> None:
    table = report.latency(example()["latency"])
    assert "10,000" not in {row[1] for row in table.rows}
    assert any("exactly-once, 10,000/s: does not keep up: 54,321 behind" in note for note in table.notes)


def test_stages_are_split_at_5000_or_at_the_highest_rate() -> None:
    part = example()["latency"]
    assert "at 5,000 a second" in report.stages(part).title
    part["rows"] = [row for row in part["rows"] if row["rate"] < 5_000]
    assert "at 2,000 a second" in report.stages(part).title


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_sound_and_its_text_lies_inside(name: str) -> None:
    for measured in (example(), {}):
        root = ElementTree.fromstring(drawn(measured)[name])
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        texts = root.findall(f"{SVG}text")
        assert root.findtext(f"{SVG}title")
        assert texts
        for text in texts:
            assert 0 < float(text.attrib["x"]) < width
            assert 0 < float(text.attrib["y"]) < height
        for shape in root.findall(f"{SVG}rect"):
            assert float(shape.attrib.get("x", 0)) + float(shape.attrib["width"]) <= width + 0.1


@pytest.mark.parametrize("colour", [INK, QUIET_INK, *COLOURS])
def test_colours_stand_out(colour: str) -> None:
    assert contrast(colour, BACKGROUND) >= 4.5


def test_bars_are_as_long_as_their_values() -> None:
    root = ElementTree.fromstring(bars("t", [Bar("a", 10.0, "10"), Bar("b", 5.0, "5", ours=True)]))
    _, first, second = root.findall(f"{SVG}rect")
    assert float(second.attrib["width"]) == pytest.approx(float(first.attrib["width"]) / 2, abs=0.1)
    assert first.attrib["fill"] != second.attrib["fill"]


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors() -> None:
    root = ElementTree.fromstring(
        lines("t", "x", "y", [Series("s", ((1.0, 1.0), (10.0, 10.0), (100.0, 100.0)))], log_x=True, log_y=True)
    )
    path = root.find(f"{SVG}polyline")
    assert path is not None
    points = [tuple(map(float, point.split(","))) for point in path.attrib["points"].split()]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2


def test_the_page_and_its_plots_are_those_of_the_committed_figures() -> None:
    measured = read_json(docs.FIGURES)
    page = docs.PAGE.read_text(encoding="utf-8")
    assert docs.filled(page, measured) == page, "run `make bench-docs`, or mend what it makes"
    assert {path.stem: path.read_text(encoding="utf-8") for path in docs.PLACE.glob("*.svg")} == drawn(measured)
    assert set(re.findall(r"\]\(benchmarks/([a-z-]+)\.svg\)", page)) == set(PLOTS)


def test_a_page_is_filled_again_and_again() -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    once = docs.filled(page, example())
    assert "123,457" in once
    assert docs.UNMEASURED not in once
    assert docs.filled(once, example()) == once
    assert docs.filled(once, {}).count(docs.UNMEASURED) == len(docs.blocks({}))


def test_a_page_with_a_block_too_many_or_too_few_is_refused() -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    with pytest.raises(docs.UnknownBlock):
        docs.filled(page.replace("bench cards", "bench carts"), {})
    with pytest.raises(docs.UnknownBlock):
        docs.filled(page.replace("<!-- bench cards begin -->", ""), {})


def test_page_plots_and_figures_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(docs.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    for name, place in (("PAGE", page), ("PLACE", tmp_path / "made"), ("FIGURES", tmp_path / "made" / "bench.json")):
        monkeypatch.setattr(docs, name, place)
    docs.write(example())
    assert read_json(docs.FIGURES) == example()
    assert page.read_text(encoding="utf-8") == docs.filled(page.read_text(encoding="utf-8"), read_json(docs.FIGURES))
    assert "123,457" in page.read_text(encoding="utf-8")
    assert {path.stem for path in docs.PLACE.glob("*.svg")} == set(PLOTS)


def test_figures_of_a_quick_run_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "PAGE", tmp_path / "page.md")
    path = tmp_path / "bench.json"
    path.write_text(f'{{"latency": {{"taken": {{"quick": true}}, "at": "{taken()["at"]}"}}}}', encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["docs", str(path)])
    with pytest.raises(SystemExit, match=r"latency of .* quick run"):
        docs.main()
