"""An analyst's ten minutes: a real worker decides and learns, a real console follows, a real browser works."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from pipeline.settings import Settings
from schemas.messages import CaseEvent, Label
from schemas.topics import CASE_EVENTS, LABELS
from tests.helpers.champion import policy
from tests.helpers.topics import Cluster, Starter, shop
from tests.helpers.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.broker

AUDIT_RATE = 0.05


class Analyst:
    """Somebody before a browser, who knows the keys."""

    def __init__(self, page: Page, cluster: Cluster) -> None:
        self.page, self._cluster = page, cluster

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def await_scripts(self) -> None:
        """Wait until the page hears keys: its scripts come behind its text."""
        expect(self.page.locator("#status dl")).to_be_visible()

    def done(self, sentence: str) -> None:
        """Wait until the page says that it is done."""
        expect(self.page.locator("[data-done]")).to_contain_text(sentence)

    def open_next(self, *, blind: bool) -> str:
        """Press `N` until a case is blind or not; return its card."""
        while True:
            before = self.page.url
            self.press("n")
            self.page.wait_for_function("address => location.href !== address", arg=before)
            heading = self.page.get_by_role("heading", level=1)
            expect(heading).to_contain_text("open")
            self.await_scripts()
            if bool(self.page.locator("h1 .tag.audit").count()) == blind:
                return heading.inner_text().split()[1]

    def events(self) -> list[CaseEvent]:
        return [msgspec.json.decode(record.value or b"", type=CaseEvent) for record in self._cluster.read(CASE_EVENTS)]

    def labels(self) -> list[Label]:
        return [msgspec.json.decode(record.value or b"", type=Label) for record in self._cluster.read(LABELS)]


@pytest.fixture
def analyst(cluster: Cluster, start: Starter, browser: Browser, tmp_path: Path) -> Iterator[Analyst]:
    settings: Settings = cluster.settings.model_copy(update={"river_publish_interval_s": 0.0})
    cluster.publish(policy(audit_rate=AUDIT_RATE))
    bought = shop(cluster, range(200), seed=3)
    cluster.flush()
    worker = start(settings)
    worker.until(lambda: len(cluster.decisions()) >= len(bought))
    console = start(settings, "-m", "pipeline.cli", "console", "--port", "0", data_dir=tmp_path / "desk")
    console.until_it_says("/link/")
    link = re.search(r"http://\S+/link/\S+", console.output)
    assert link is not None
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(TIMEOUT_S * 1_000)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(link[0])
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#rows tbody tr").first).to_be_visible()
    analyst = Analyst(page, cluster)
    analyst.await_scripts()
    yield analyst
    page.close()
    assert failures == []
    assert console.stop() == 0


def test_an_analyst_works_a_case_from_the_queue_to_the_audit(analyst: Analyst, tmp_path: Path) -> None:
    page = analyst.page
    cases = {alert.case_id: alert.card_id for alert in analyst._cluster.alerts()}
    eventually(lambda: page.locator("#rows tbody tr").count() == len(cases))

    # The worst case: its shares sum to the score, which is the same when it is computed anew.
    card = analyst.open_next(blind=False)
    assert card in cases.values()
    why = page.locator(".why")
    expect(why).to_contain_text("equal to the last bit")
    shares, (total,) = (
        [float(item.get_attribute("value") or "nan") for item in why.locator(f".reasons {part} data").all()]
        for part in ("tbody", "tfoot")
    )
    assert len(shares) > 1
    assert math.fsum(shares) == pytest.approx(total, abs=1e-9)

    # A note, whose draft outlives the page.
    page.get_by_label("New note").fill("The customer was called.")
    page.reload()
    expect(page.get_by_label("New note")).to_have_value("The customer was called.")
    page.get_by_role("button", name="Save note").click()
    expect(page.locator(".people")).to_contain_text("The customer was called.")

    # The label, and what has learned it.
    analyst.press("f")
    analyst.done("fraud")
    expect(page.locator("[data-done]")).to_contain_text("The online model has learned it")
    labels = analyst.labels()
    assert {(label.card_id, label.label, label.source) for label in labels} == {(card, "fraud", "analyst")}

    # Undone: nothing was known before.
    analyst.press("u")
    expect(page.get_by_role("heading", level=1)).to_contain_text("open")
    eventually(lambda: [label.label for label in analyst.labels()[len(labels) :]] == ["unknown"] * len(labels))

    # Snoozed: it has left the queue.
    analyst.press("s")
    page.get_by_role("button", name=re.compile("1 hour")).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("snoozed")
    history = page.locator(".people")
    for word in ("claimed", "note", "fraud", "snoozed"):
        expect(history).to_contain_text(word)

    # The export has all of it.
    with page.expect_download() as download:
        page.get_by_role("link", name="Export").click()
    saved = tmp_path / "case.html"
    download.value.save_as(saved)
    exported = saved.read_text(encoding="utf-8")
    assert "The customer was called." in exported
    assert re.findall("<script[^>]*>", exported) == ['<script type="application/json" id="record">']

    # A blind case: no score until it is answered; the answer goes to whom it speaks for.
    card = analyst.open_next(blind=True)
    assert page.locator(".why").get_by_text("log-odds").count() == 0
    expect(page.locator("#case")).to_contain_text("Judge this one without the score")
    analyst.press("l")
    analyst.done("legitimate")
    answers = [label for label in analyst.labels() if label.card_id == card]
    assert {(label.card_id, label.label) for label in answers} == {(card, "legitimate")}
    audited = {alert.transaction_id for alert in analyst._cluster.alerts() if alert.selection == "audit"}
    assert all((label.source == "audit") == (label.transaction_id in audited) for label in answers)

    kinds = [event.kind for event in analyst.events()]
    assert {"claimed", "noted", "closed", "undone", "snoozed"} <= set(kinds)
    assert len({event.event_id for event in analyst.events()}) == len(kinds)
