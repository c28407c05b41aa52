"""``make bench-docs``: puts what ``build/bench.json`` holds into ``docs/benchmarks.md`` and its plots.

The figures themselves go to ``docs/benchmarks/bench.json``, so that a test can hold page and plots to them.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.broker.local import read_json
from tests.benchmarks import report
from tests.benchmarks.bounds import check, read_bounds
from tests.benchmarks.plots import drawn
from tests.benchmarks.running import ROOT
from tests.benchmarks.tables import as_markdown

PAGE: Final = ROOT / "docs/benchmarks.md"
PLACE: Final = ROOT / "docs/benchmarks"
FIGURES: Final = PLACE / "bench.json"
UNMEASURED: Final = "*Not measured yet: `make bench`, then `make bench-docs`.*"
_BLOCK: Final = re.compile(r"<!-- bench ([a-z-]+) begin -->\n(.*?)<!-- bench \1 end -->", re.DOTALL)


class UnknownBlock(ValueError):
    """The page asks for a table that there is not, or lacks one that there is."""


def blocks(measured: Mapping[str, Any]) -> dict[str, str]:
    """Markdown of every table by name; of a part that was not measured, a line that says so."""
    made = {
        name: as_markdown(table(measured[part])) if part in measured else UNMEASURED
        for part, tables in report.PARTS.items()
        for name, table in tables.items()
    }
    for name, table in (
        ("machines", report.machines(measured)),
        ("versions", report.versions(measured)),
        ("bounds", report.bounds(check(measured, read_bounds()))),
    ):
        made[name] = as_markdown(table) if table.rows else UNMEASURED
    return made


def filled(page: str, measured: Mapping[str, Any]) -> str:
    """``page`` with every block made anew. Raises `UnknownBlock`."""
    made = blocks(measured)
    asked = [name for name, _ in _BLOCK.findall(page)]
    if sorted(asked) != sorted(made):
        raise UnknownBlock(f"the page has blocks for {sorted(asked)}; it needs each of {sorted(made)} once")
    return _BLOCK.sub(
        lambda found: f"<!-- bench {found[1]} begin -->\n{made[found[1]]}\n<!-- bench {found[1]} end -->", page
    )


def write(measured: Mapping[str, Any]) -> None:
    """Write the figures, the plots and the page."""
    figures = json.dumps(measured, indent=1, sort_keys=True)
    # From what the file says, in its order: rows of equal figures stand as they come.
    measured = json.loads(figures)
    page = filled(PAGE.read_text(encoding="utf-8"), measured)
    PLACE.mkdir(exist_ok=True)
    FIGURES.write_text(figures + "\n", encoding="utf-8")
    for name, svg in drawn(measured).items():
        (PLACE / f"{name}.svg").write_text(svg, encoding="utf-8")
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """From ``build/bench.json``, or from the file that is named."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build/bench.json"
    measured = read_json(source)
    if not measured:
        sys.exit(f"{source} holds nothing: run `make bench` first")
    if quick := [name for name, part in measured.items() if part["taken"]["quick"]]:
        sys.exit(f"{', '.join(quick)} of {source} are from a quick run, whose figures mean nothing: run `make bench`")
    write(measured)
    print(f"{PAGE.relative_to(ROOT)} and {PLACE.relative_to(ROOT)} hold {', '.join(measured)}")


if __name__ == "__main__":
    main()
