"""The report's page in a real browser: Debian's Chromium, without a network."""

import json
import re
import struct
import subprocess
from html import escape
from pathlib import Path

import pytest

from pipeline.backtest.report import ReportOptions, build_report
from tests.helpers.backtests import HOSTILE, result
from tests.helpers.tools import tool
from tests.helpers.waiting import TIMEOUT_S

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    given = result(variants=2, warnings=[HOSTILE], partial=True)
    path.write_text(build_report(given, ReportOptions(replicates=20, top=5)).html, encoding="utf-8")
    return path


def browse(page: Path, *arguments: str, bars: bool = False) -> str:
    """Chromium's output about ``page``, with or without ``bars`` beside what scrolls."""
    profile = f"--user-data-dir={page.parent / 'profile'}"
    flags = FLAGS if bars else (*FLAGS, "--hide-scrollbars")
    command = [tool("chromium", "chromium"), *flags, profile, *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measuring(page: Path, body: str) -> Path:
    """The page with a script that leaves what ``body`` returns in the title."""
    script = f"<script>document.title = JSON.stringify((() => {{ {body} }})())</script>"
    path = page.with_name("measured.html")
    path.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{script}</body>"), encoding="utf-8")
    return path


def test_the_browser_finds_the_page_in_order(page: Path) -> None:
    body = """
      const all = (names) => [...document.querySelectorAll(names)];
      const boxes = all("figure svg").map((one) => one.getBoundingClientRect());
      const outside = all("figure svg text").filter((one) => {
        const box = one.getBoundingClientRect(), frame = one.closest("svg").getBoundingClientRect();
        return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
      });
      return {
        mode: document.compatMode, sections: all("main section").length, scripts: all("main script").length,
        drawn: boxes.filter((box) => box.width > 300 && box.height > 60).length, figures: boxes.length,
        outside: outside.map((one) => one.textContent),
        wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        requests: performance.getEntriesByType("resource").length,
        headings: all("h2").map((one) => one.textContent),
        hidden: all(".scroll").filter((one) => one.scrollWidth > one.clientWidth)
          .map((one) => one.querySelector("caption").textContent),
      };
    """
    dom = browse(measuring(page, body), "--window-size=1100,1400", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    found = json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert found["mode"] == "CSS1Compat"
    assert found["sections"] == len(found["headings"]) == 11
    assert found["drawn"] == found["figures"] == 10
    assert found["outside"] == []
    assert found["wider"] == 0
    # Tables that name transactions may be wider than a window; those of figures are read as a whole.
    assert [caption for caption in found["hidden"] if re.match("Figures|By|Recall|Metrics", caption)] == []
    assert found["scripts"] == found["requests"] == 0


def test_a_narrow_window_shows_the_whole_page_too(page: Path) -> None:
    body = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    dom = browse(measuring(page, body), "--window-size=500,900", "--dump-dom")
    assert "<title>0</title>" in dom


def test_on_a_phone_tables_scroll_within_the_page(page: Path) -> None:
    body = """
      const parts = [...document.querySelectorAll(".scroll")].filter((one) => one.offsetParent);
      const wide = parts.filter((one) => one.scrollWidth > one.clientWidth);
      const figures = [...document.querySelectorAll("figure")].filter((one) => one.offsetParent);
      wide.forEach((one) => { one.scrollLeft = one.scrollWidth; });
      return {
        width: document.documentElement.clientWidth,
        outside: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        wide: wide.length, scrolled: wide.filter((one) => one.scrollLeft > 0).length,
        shaded: wide.filter((one) => getComputedStyle(one).backgroundAttachment.includes("local")).length,
        barred: wide.filter((one) => one.offsetHeight > one.clientHeight).length,
        drawn: figures.length, plots: figures.filter((one) => one.scrollWidth > one.clientWidth
          && getComputedStyle(one.querySelector("figcaption"), "::after").content.includes("sideways")
          && one.offsetHeight > one.clientHeight).length,
        named: wide.filter((one) => one.querySelector("tbody th").getBoundingClientRect().left >= 0).length,
        first: [...document.querySelectorAll("main > *")].map((one) => one.className || one.tagName),
      };
    """
    # No window of the browser is as narrow: a frame is, of 390 pixels beside a bar of 15.
    inner = measuring(page, body).read_text(encoding="utf-8")
    inner = inner.replace("</body>", '<script>parent.postMessage(document.title, "*")</script></body>')
    frame = page.with_name("frame.html")
    frame.write_text(
        "<script>onmessage = (told) => { document.title = told.data; }</script>"
        f'<iframe srcdoc="{escape(inner)}" style="width: 405px; height: 844px; border: 0"></iframe>',
        encoding="utf-8",
    )
    dom = browse(frame, "--virtual-time-budget=5000", "--dump-dom", bars=True)
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None, dom[:500]
    found = json.loads(title[1].replace("&amp;", "&"))
    assert (found["width"], found["outside"]) == (390, 0)
    assert found["wide"] == found["scrolled"] == found["named"] > 0
    # That there is more is seen: a shade or a sentence, and a bar.
    assert found["shaded"] == found["barred"] == found["wide"]
    assert found["plots"] == found["drawn"] > 0
    opening = [name for name in found["first"] if name not in {"H1", "quiet", "warning"}]
    assert opening[:3] == ["verdict", "FIGURE", "NAV"]


def test_it_is_painted_and_printed(page: Path) -> None:
    shot, printed = page.with_suffix(".png"), page.with_suffix(".pdf")
    browse(page, "--window-size=1000,1400", f"--screenshot={shot}")
    head = shot.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert struct.unpack(">II", head[16:24]) == (1000, 1400)
    browse(page, "--no-pdf-header-footer", f"--print-to-pdf={printed}")
    pages = re.findall(rb"/Type\s*/Page\b", printed.read_bytes())
    assert 4 <= len(pages) <= 25
