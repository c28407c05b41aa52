"""Pictures of the console beside a real run, for the README and the analysts' guide.

``python -m tests.helpers.console_pictures`` starts a run that goes on, works on its cases in Chromium, and writes
``docs/console-*.png`` and ``docs/console.gif``: an alert, its label, and what the online model has learned.
"""

import io
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.helpers.tools import tool
from tests.helpers.worker import ROOT, inherited_environment

COMMAND: Final = (sys.executable, "-m", "pipeline.cli", "run", "--days", "0", "--day-seconds", "2")
LINK: Final = re.compile(r"http://127\S+/link/\S+")
STREAMED: Final = re.compile(r"day ([4-9]|\d\d) ")
"""Days from which on the online model has learned from labels."""
SIZE: Final = {"width": 1280, "height": 800}
SHOWN: Final = 960
"""Width of the animation, in pixels."""
FRAME_MS: Final = 2_500
WAIT_MS: Final = 120_000


class NoPictures(RuntimeError):
    """The run ended before there was anything to show."""


@contextmanager
def running() -> Iterator[str]:
    """Run the pipeline until labels come; yield the link to its console."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {**inherited_environment(), "FRAUD_PIPELINE_DATA_DIR": directory}
        process = subprocess.Popen(
            COMMAND, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            link = ""
            for line in process.stdout:
                link = found[0] if (found := LINK.search(line)) else link
                if link and STREAMED.search(line):
                    break
            else:
                raise NoPictures(f"the run ended with exit code {process.wait()}")
            yield link
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def work(page: Page, link: str) -> Iterator[tuple[str, bytes]]:
    """Sign in, label a case, and yield the name and the picture of each step."""
    page.goto(link)
    page.get_by_role("button").first.click()
    page.get_by_role("heading", name="Queue").wait_for()
    page.locator("#rows tbody tr").first.wait_for()
    yield "queue", page.screenshot()
    page.keyboard.press("n")
    page.wait_for_url("**/cases/**")
    while page.locator(".tag.audit").count():
        # Blind cases show nothing of their score.
        page.keyboard.press("l")
        page.locator("[data-done]").wait_for()
        address = re.escape(page.url)
        page.keyboard.press("n")
        page.wait_for_url(re.compile(f"^(?!{address}$)"))
    page.locator(".why table tbody tr").first.wait_for()
    yield "case", page.screenshot()
    page.keyboard.press("f")
    page.locator("[data-done]").wait_for()
    yield "labelled", page.screenshot()
    page.get_by_text("has learned it").first.wait_for()
    yield "learned", page.screenshot()


def animation(pictures: list[bytes]) -> bytes:
    """Join pictures of pages to an animation (GIF)."""
    frames = []
    for picture in pictures:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        height = round(image.height * SHOWN / image.width)
        frames.append(image.resize((SHOWN, height), Image.Resampling.LANCZOS).quantize(64, dither=Image.Dither.NONE))
    joined = io.BytesIO()
    frames[0].save(joined, "GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=True)
    return joined.getvalue()


def main() -> None:
    """Write the pictures."""
    docs = Path(ROOT / "docs")
    with running() as link, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=tool("chromium", "chromium"), args=["--no-sandbox", "--force-color-profile=srgb"]
        )
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.set_default_timeout(WAIT_MS)
        pictures = dict(work(page, link))
        browser.close()
    for name in ("queue", "case"):
        (docs / f"console-{name}.png").write_bytes(pictures[name])
    (docs / "console.gif").write_bytes(animation(list(pictures.values())))


if __name__ == "__main__":
    try:
        main()
    except NoPictures as error:
        sys.exit(f"Error: {error}")
