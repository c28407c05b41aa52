"""Pages that are programs: each is run, and shows what comes out."""

import os
from pathlib import Path

import pytest

from tests.helpers.documents import NOTEBOOKS, ROOT, blocks, notebook, outputs

PAGES = ("docs/notebook.md", "examples/own-csv.md", "examples/custom-feature.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_page_shows_what_comes_out(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("FRAUD_", "KAFKA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    document = (ROOT / page).read_text(encoding="utf-8")
    shown = [(block.content, output) for block, output in outputs(document)]
    assert len(shown) == sum(block.language == "text" for block in blocks(document)) > 0
    for content, output in shown:
        assert content == output
    for report in tmp_path.glob("*.html"):
        assert "<svg" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_no_code_of_the_page_is_left_out(page: str) -> None:
    document = (ROOT / page).read_text(encoding="utf-8")
    assert document.count("```") == 2 * len(blocks(document))


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_the_notebook_is_the_page(page: str) -> None:
    made = notebook((ROOT / page).read_text(encoding="utf-8"))
    assert made == (ROOT / NOTEBOOKS[page]).read_text(encoding="utf-8"), (
        f"run `python -m tests.helpers.documents {page}`"
    )


def test_every_example_is_run() -> None:
    examples = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").iterdir()}
    # tests/integration/test_faust_example.py runs the agent, test_own_features_page.py the page with a declaration, and
    # tests/unit/settings/test_rule_files.py reads the rules.
    others = {"examples/README.md", "examples/faust-agent.md", "examples/own-features.md", "examples/rules"}
    assert examples - others == {*NOTEBOOKS.values(), *PAGES[1:]}
