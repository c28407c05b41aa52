"""The documentation site builds without a warning: pages, links, anchors, and no page that nothing leads to."""

import subprocess
import sys
from pathlib import Path

from tests.helpers.waiting import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
BUILD = (sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-c", "docs", "-b", "text")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = subprocess.run(
        [*BUILD, ".", tmp_path], check=False, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert build.returncode == 0, build.stderr
    options = (tmp_path / "docs/command-options.txt").read_text(encoding="utf-8")
    assert "--budget-per-day" in options
    assert ".. option::" not in options, "the page shows reStructuredText as it stands"


def test_the_entrance_leads_to_the_index() -> None:
    assert "url=docs/index.html" in (ROOT / "docs/site/index.html").read_text(encoding="utf-8")
    assert (ROOT / "docs/index.md").exists()
