"""The example for notebooks is run, and says what its page says."""

import os
from pathlib import Path

import pytest

from tests.helpers.documents import blocks, outputs

PAGE = Path(__file__).resolve().parents[2] / "docs/notebook.md"


def test_the_page_shows_what_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("FRAUD_", "KAFKA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    document = PAGE.read_text(encoding="utf-8")
    shown = [(block.content, said) for block, said in outputs(document)]
    assert len(shown) == sum(block.language == "text" for block in blocks(document)) > 3
    for content, said in shown:
        assert content == said
    assert "<svg" in Path("report.html").read_text(encoding="utf-8")


def test_no_code_of_the_page_is_left_out() -> None:
    fences = PAGE.read_text(encoding="utf-8").count("```")
    assert fences == 2 * len(blocks(PAGE.read_text(encoding="utf-8")))
