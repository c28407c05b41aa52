"""The console's pages in a real browser: Debian's Chromium, on a real server whose cases are made by hand."""

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Error, Page, Route, expect

from pipeline.console import case_pages, queue_pages
from pipeline.console.action_records import ActionRefused
from pipeline.console.presentation import BLIND_SENTENCE, case_url
from pipeline.console.roles import Role
from tests.helpers.case_views import HOSTILE, UNCONFIRMED, Answers, CasesInMemory, case_view, us
from tests.helpers.consoles import RunningConsole, served, stand_in_parts
from tests.helpers.waiting import TIMEOUT_S, eventually

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
CARDS = 30
BLIND = 2
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CARDS_SHOWN = "table.cases tbody th"


def case_id(number: int) -> str:
    return f"card-{100 + number}-1730"


class Desk(NamedTuple):
    """A console with cases in memory, and a browser before it."""

    console: RunningConsole
    cases: CasesInMemory
    answers: Answers
    browser: Browser

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.console.port}"

    @contextmanager
    def context(self, role: Role = "supervisor", **options: Any) -> Iterator[BrowserContext]:
        """A browser that has signed in, without anything that its pages should not do."""
        context = self.browser.new_context(**{"viewport": WIDE, **options})
        context.set_default_timeout(TIMEOUT_S * 1_000)
        try:
            self.sign_in(context.new_page(), role)
            yield context
        finally:
            context.close()

    @contextmanager
    def page(self, path: str = "/", role: Role = "supervisor", **options: Any) -> Iterator[Page]:
        with self.context(role, **options) as context:
            page = context.pages[0]
            failures: list[str] = []
            page.on("pageerror", lambda error: failures.append(str(error)))
            page.on("console", lambda text: failures.append(text.text) if "Content Security" in text.text else None)
            page.on("dialog", lambda dialog: failures.append(dialog.message))
            self.open(page, path)
            yield page
            assert failures == []

    def open(self, page: Page, path: str) -> None:
        page.goto(self.address + path)
        self.await_scripts(page)

    def await_scripts(self, page: Page) -> None:
        """Wait until a page hears keys: its scripts come behind its text."""
        expect(page.locator("#status dl")).to_be_visible()

    def await_rows(self, page: Page) -> None:
        """Wait until the queue is connected and has the rows that it asks for once more then."""
        expect(page.locator("[data-connection]")).to_have_text("Live")
        expect(page.locator("#rows.htmx-request")).to_have_count(0)

    def sign_in(self, page: Page, role: Role) -> None:
        page.goto(f"{self.address}/link/{self.console.accounts.link(role, f'a-{role}')}")
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(re.compile(r"/($|account|cases|\?)"))

    def publish(self, *ids: str) -> None:
        self.console.parts.changes.publish(ids)

    def listeners(self) -> int:
        return len(self.console.parts.changes._listeners)


@pytest.fixture
def desk(browser: Browser, tmp_path: Path) -> Iterator[Desk]:
    cases = []
    for number in range(CARDS):
        case = case_view(case_id(number), f"card-{100 + number}", blind=number == BLIND)
        if case.row.expected_loss is not None:
            case = case._replace(row=case.row._replace(expected_loss=1_000.0 - 10 * number))
        cases.append(case)
    memory, answers = CasesInMemory(cases), Answers()
    parts = stand_in_parts(tmp_path, store=memory, actions=memory, explainer=answers, status=answers)
    with served(parts, routes=[*queue_pages.ROUTES, *case_pages.ROUTES]) as console:
        yield Desk(console, memory, answers, browser)


def ranks(page: Page) -> list[str]:
    return page.locator(CARDS_SHOWN).all_inner_texts()


def test_what_changes_before_a_page_hears_of_changes_is_shown(desk: Desk) -> None:
    with desk.context() as context:
        page = context.pages[0]

        def late(route: Route) -> None:
            # The rows of the page have been sent, and its script is still to come.
            desk.cases.cases["late"] = case_view("late-1730", "card-late")
            route.continue_()

        page.route("**/static/console.js*", late)
        desk.open(page, "/")
        expect(page.get_by_role("link", name="card-late")).to_be_visible()


# --- Looks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_meets_the_rules_of_accessibility(desk: Desk, scheme: Any, viewport: Any) -> None:
    with desk.page("/", color_scheme=scheme, viewport=viewport) as page:
        found = {}

        def check(name: str) -> None:
            response = Axe().run(page).response
            assert len(response["passes"]) > 10
            found[name] = [(each["id"], each["nodes"][0]["html"]) for each in response["violations"]]
            assert page.evaluate(WIDER) == 0, name

        check("queue")
        page.locator("[name=case]").first.check()
        check("ticked")
        page.locator("[name=case]").first.uncheck()
        page.keyboard.press("?")
        check("help")
        for name, path in {
            "empty": "/?q=nothing",
            "search": "/?state=any&q=card-10",
            "nothing": "/?state=any&q=none",
            "blind": case_url(case_id(BLIND)),
            "unknown": "/cases/none",
            "case": case_url(case_id(0)),
        }.items():
            desk.open(page, path)
            check(name)
        page.keyboard.press("s")
        check("snooze")
        page.keyboard.press("Escape")
        page.keyboard.press("f")
        expect(page.locator("[data-done]")).to_be_visible()
        check("labelled")
        assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_case_is_one_screen(desk: Desk) -> None:
    with desk.page(case_url(case_id(0))) as page:
        higher = page.evaluate("document.documentElement.scrollHeight - innerHeight")
        assert higher <= 0
        for name in ("Why it scored", "2 alerts", "Amounts of the card", "Notes", "Linked cases", "History"):
            expect(page.get_by_role("heading", name=name, exact=False).first).to_be_in_viewport()
        for chart in page.locator(".chart canvas").all():
            expect(chart).to_be_in_viewport()
        assert page.locator(".chart canvas").count() == 2


@pytest.mark.parametrize("width", [390, 320])
def test_no_page_is_wider_than_a_telephone(desk: Desk, width: int) -> None:
    desk.console.accounts.add("n" * 64, "supervisor", None)
    with desk.page("/", viewport={"width": width, "height": 844}) as page:
        for path in ("/", case_url(case_id(0)), case_url(case_id(BLIND)), "/?q=none", "/accounts", "/account"):
            desk.open(page, path)
            assert page.evaluate(WIDER) == 0, path
        desk.open(page, case_url(case_id(0)))
        page.keyboard.press("s")
        expect(page.locator("#snooze")).to_be_visible()
        assert page.evaluate(WIDER) == 0


def test_keys_work_at_twice_the_size(desk: Desk) -> None:
    """A window of 1280 pixels at 200 % has 640 of CSS."""
    with desk.page("/", viewport={"width": 640, "height": 400}, device_scale_factor=2) as page:
        page.keyboard.press("j")
        page.keyboard.press("j")
        expect(page.locator("table.cases tbody tr").nth(1).locator("a")).to_be_focused()
        expect(page.locator("table.cases tbody tr").nth(1).locator("a")).to_be_in_viewport()
        page.keyboard.press("n")
        expect(page.locator("h1")).to_contain_text(f"card-{100 + BLIND}")
        desk.await_scripts(page)
        for key, dialog in (("?", "#help"), ("s", "#snooze")):
            page.keyboard.press(key)
            expect(page.locator(dialog)).to_be_visible()
            box = page.locator(dialog).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 640
            page.keyboard.press("Escape")
        page.keyboard.press("f")
        expect(page.locator("[data-done]")).to_contain_text("Labelled 2 transactions as fraud.")
        expect(page.locator("[data-done]")).to_be_in_viewport()
        page.keyboard.press("u")
        expect(page.locator("h1")).to_contain_text("open")
        assert page.evaluate(WIDER) == 0


def test_all_works_at_twice_the_size(desk: Desk) -> None:
    with desk.page("/", viewport={"width": 640, "height": 400}, device_scale_factor=2) as page:
        for path in ("/", case_url(case_id(0)), case_url(case_id(BLIND)), "/?state=any&q=card"):
            desk.open(page, path)
            assert page.evaluate(WIDER) == 0
        page.goto(desk.address + case_url(case_id(0)))
        page.get_by_role("button", name="Fraud").click()
        expect(page.locator("[data-done]")).to_contain_text("Labelled 2 transactions as fraud.")


# --- The queue --------------------------------------------------------------------------------------------------------


def test_a_new_case_appears_by_itself(desk: Desk) -> None:
    with desk.page() as page:
        expect(page.locator("[data-connection]")).to_have_text("Live")
        desk.cases.cases["new-1730"] = case_view("new-1730", "card-new")
        desk.publish("new-1730")
        expect(page.locator(CARDS_SHOWN).filter(has_text="card-new")).to_be_visible()
        assert page.locator("#changes").is_hidden()


@pytest.mark.parametrize("how", ["pointer", "focus", "tick"])
def test_no_row_moves_while_one_is_at_hand(desk: Desk, how: str) -> None:
    with desk.page() as page:
        desk.await_rows(page)
        row = page.locator("table.cases tbody tr").nth(4)
        if how == "pointer":
            row.hover()
        elif how == "focus":
            row.locator("a").focus()
        else:
            row.locator("[name=case]").check()
            page.evaluate("document.activeElement.blur()")
            page.mouse.move(1, 1)
        before, box = ranks(page), row.bounding_box()
        asked = len(desk.cases.filters)
        for number in (20, 21, 22):
            desk.cases.change(case_id(number), expected_loss=2_000.0 + number)
        desk.publish(*map(case_id, (20, 21, 22)))
        expect(page.locator("#changes")).to_contain_text("3 cases changed - press R to show")
        assert (ranks(page), row.bounding_box(), len(desk.cases.filters)) == (before, box, asked)
        page.keyboard.press("r")
        expect(page.locator(CARDS_SHOWN).nth(1)).to_have_text("card-122")
        expect(page.locator("#changes")).to_be_hidden()
        if how == "tick":
            assert page.locator("[name=case]:checked").get_attribute("value") == before[4] + "-1730"


def test_rows_that_come_while_one_is_ticked_count_as_no_case(desk: Desk) -> None:
    with desk.context() as context:
        page = context.pages[0]

        def late(route: Route) -> None:
            page.locator("table.cases tbody tr").nth(4).locator("[name=case]").check()
            route.continue_()

        # The queue that signing in has led to may still ask for its rows, which is not the request meant here.
        desk.open(page, "/account")
        page.route("**/queue", late, times=1)
        desk.open(page, "/")
        expect(page.get_by_text("Cases may have changed - press R to show")).to_be_visible()
        desk.publish(*map(case_id, (20, 21)))
        expect(page.locator("#changes")).to_contain_text("2 cases changed - press R to show")


def test_the_rows_follow_once_the_pointer_has_left(desk: Desk) -> None:
    with desk.page() as page:
        desk.await_rows(page)
        page.locator("table.cases tbody tr").nth(2).hover()
        desk.cases.change(case_id(9), expected_loss=5_000.0)
        desk.publish(case_id(9))
        expect(page.get_by_text("1 case changed - press R to show")).to_be_visible()
        page.mouse.move(1, 1)
        expect(page.locator(CARDS_SHOWN).nth(1)).to_have_text("card-109")


def test_a_paused_queue_asks_for_nothing(desk: Desk) -> None:
    with desk.page() as page:
        desk.await_rows(page)
        page.keyboard.press("p")
        expect(page.locator("[data-connection]")).to_have_text("Paused")
        asked = len(desk.cases.filters)
        desk.cases.change(case_id(9), expected_loss=5_000.0)
        desk.publish(case_id(9))
        expect(page.locator("#changes")).to_contain_text("1 case changed - press R to show")
        assert len(desk.cases.filters) == asked
        page.keyboard.press("p")
        expect(page.locator(CARDS_SHOWN).nth(1)).to_have_text("card-109")


def test_ten_tabs_share_one_connection(desk: Desk) -> None:
    with desk.context() as context:
        pages = [context.pages[0], *(context.new_page() for _ in range(9))]
        for page in pages:
            desk.open(page, "/")
            expect(page.locator("[data-connection]")).to_have_text("Live")
        # The server may not have noticed yet that the connection of the page that signed in has ended.
        eventually(lambda: desk.listeners() == 1)
        desk.cases.cases["new-1730"] = case_view("new-1730", "card-new")
        desk.publish("new-1730")
        for page in pages:
            page.bring_to_front()
            expect(page.locator(CARDS_SHOWN).filter(has_text="card-new")).to_be_visible()


def test_a_browser_without_shared_workers_is_live_too(desk: Desk) -> None:
    with desk.context() as context:
        context.add_init_script("delete window.SharedWorker")
        page = context.new_page()
        desk.open(page, "/")
        expect(page.locator("[data-connection]")).to_have_text("Live")
        desk.cases.cases["new-1730"] = case_view("new-1730", "card-new")
        desk.publish("new-1730")
        expect(page.locator(CARDS_SHOWN).filter(has_text="card-new")).to_be_visible()


def test_filters_and_pages_are_addresses(desk: Desk) -> None:
    with desk.page("/?state=closed&holder=-&min_loss=12.5&q=a%26b&after=100") as page:
        # The page of a test before may have asked for its own once more meanwhile.
        asked = [(each.text, each.status, each.holder, each.least_loss, each.after) for each in desk.cases.filters]
        assert ("a&b", "closed", "-", 12.5, 100) in asked
        assert page.locator(".filters [name=q]").input_value() == "a&b"
        assert (
            page.get_by_role("link", name="CSV").get_attribute("href")
            == "/queue.csv?q=a%26b&state=closed&holder=-&min_loss=12.5"
        )
        desk.open(page, "/?min_loss=much")
        expect(page.get_by_role("heading")).to_contain_text("as a number")


def test_a_supervisor_closes_ticked_cases_with_a_reason(desk: Desk) -> None:
    with desk.page() as page:
        for number in (3, 4):
            page.locator(f'[name=case][value="{case_id(number)}"]').check()
        page.get_by_label("Close the ticked cases because").fill("Test cards of the acquirer.")
        page.get_by_role("button", name="Close ticked").click()
        expect(page.locator(CARDS_SHOWN)).to_have_count(CARDS - 2)
        assert [desk.cases.cases[case_id(number)].history[-1].event.note for number in (3, 4)] == [
            "Test cards of the acquirer."
        ] * 2


# --- The case ---------------------------------------------------------------------------------------------------------


def test_from_a_case_to_the_next_labelled_in_two_keys(desk: Desk) -> None:
    with desk.page() as page:
        page.keyboard.press("n")
        expect(page.locator("h1")).to_contain_text(f"card-{100 + BLIND}")
        desk.await_scripts(page)
        desk.cases.gate.clear()
        page.keyboard.press("f")
        page.keyboard.press("n")
        assert desk.cases.cases[case_id(BLIND)].row.status == "open"
        desk.cases.gate.set()
        expect(page.locator("h1")).to_contain_text("card-100")
        assert desk.cases.cases[case_id(BLIND)].row.status == "closed"
        assert desk.cases.cases[case_id(0)].row.holder == "a-supervisor"
        desk.await_scripts(page)
        page.keyboard.press("l")
        expect(page.locator("[data-done]")).to_contain_text("Labelled 2 transactions as legitimate.")
        page.keyboard.press("n")
        expect(page.locator("h1")).to_contain_text("card-101")


def test_a_label_says_when_it_counts_and_who_has_learned_it_and_can_be_undone(desk: Desk) -> None:
    with desk.page(case_url(case_id(0))) as page:
        page.get_by_label("Tick card-100-old1", exact=True).check()
        page.keyboard.press("f")
        done = page.locator("[data-done]")
        expect(done).to_contain_text("Labelled 3 transactions as fraud.")
        expect(done).to_contain_text("has not learned it yet")
        desk.answers.river = "river-48212"
        expect(done).to_contain_text("has learned it (version river-48212)")
        asked = desk.answers.asked
        page.keyboard.press("u")
        expect(page.locator("h1")).to_contain_text("open")
        expect(page.locator(".history")).to_contain_text("(undone)")
        assert desk.answers.asked == asked
        assert [kind for kind, _ in desk.cases.calls] == ["closed", "undone"]


def test_shares_sum_to_the_score_and_the_page_says_on_which_scale(desk: Desk) -> None:
    with desk.page(case_url(case_id(0))) as page:
        table = page.locator("table.reasons")
        shares = [float(str(each.get_attribute("value"))) for each in table.locator("tbody data").all()]
        total = float(str(table.locator("tfoot data").get_attribute("value")))
        assert abs(sum(shares) - total) <= 1e-9
        assert len(shares) == 8
        expect(table).to_contain_text("log-odds")
        expect(page.locator(".known")).to_contain_text("equal to the last bit")


def test_a_snooze_has_its_times_and_an_own_one(desk: Desk) -> None:
    with desk.page(case_url(case_id(0))) as page:
        page.keyboard.press("s")
        page.keyboard.press("Escape")
        expect(page.locator("#snooze")).to_be_hidden()
        page.keyboard.press("s")
        page.locator("#snooze").get_by_role("button", name="3 days").click()
        expect(page.locator("[data-done]")).to_contain_text("Snoozed the case until")
        until = desk.cases.cases[case_id(0)].history[-1].event.until
        assert until is not None
        assert timedelta(days=2) < until - datetime.now(UTC) <= timedelta(days=3)
        page.keyboard.press("s")
        page.get_by_label("Own time").fill("2020-01-01T08:00")
        page.get_by_role("button", name="Snooze until then").click()
        expect(page.locator("#snooze [data-notice]")).to_contain_text("in the past")
        page.get_by_label("Own time").fill("2099-01-01T08:00")
        page.get_by_role("button", name="Snooze until then").click()
        expect(page.locator("[data-done]")).to_contain_text("2099-01-01 08:00 UTC")
        page.keyboard.press("s")
        page.get_by_label("Own time").fill("2099-01-01T08:00")
        page.get_by_label("Offset from UTC").fill("+01:00")
        page.get_by_role("button", name="Snooze until then").click()
        expect(page.locator("[data-done]")).to_contain_text("2099-01-01 07:00 UTC")


def test_a_note_outlives_a_reload_and_a_session_and_is_gone_once_saved(desk: Desk) -> None:
    text = "Called the cardholder:\n<b>not theirs</b>"
    with desk.page(case_url(case_id(0))) as page:
        page.locator("textarea").fill(text)
        page.reload()
        expect(page.locator("textarea")).to_have_value(text)
        page.context.clear_cookies()
        # The line at the top may ask first, or meanwhile, and leads to the same page.
        with suppress(Error):
            page.evaluate("document.querySelector('#note-text')?.form.requestSubmit()")
        expect(page).to_have_url(re.compile("/login"))
        desk.sign_in(page, "supervisor")
        desk.open(page, case_url(case_id(0)))
        expect(page.locator("textarea")).to_have_value(text)
        page.locator("textarea").press("Control+Enter")
        expect(page.locator("blockquote p")).to_have_text(text)
        expect(page.locator("textarea")).to_have_value("")
        page.reload()
        expect(page.locator("textarea")).to_have_value("")
        assert [entry.event.note for entry in desk.cases.cases[case_id(0)].history] == [text]


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (ActionRefused("bob holds this case: ask."), "bob holds this case: ask."),
        (UNCONFIRMED, "brokers did not confirm"),
    ],
)
def test_a_refused_action_says_why_and_loses_nothing(desk: Desk, failure: Exception, sentence: str) -> None:
    with desk.page(case_url(case_id(0))) as page:
        page.locator("textarea").fill("Not saved yet.")
        page.locator("h1").click()
        page.get_by_label("Tick card-100-old1", exact=True).check()
        desk.cases.failure = failure
        page.keyboard.press("f")
        expect(page.locator("#notice[role=alert]")).to_contain_text(sentence)
        expect(page.locator("textarea")).to_have_value("Not saved yet.")
        expect(page.get_by_label("Tick card-100-old1", exact=True)).to_be_checked()
        desk.cases.failure = None
        page.keyboard.press("f")
        expect(page.locator("[data-done]")).to_contain_text("Labelled 3 transactions")
        expect(page.locator("#notice")).to_be_empty()
        # The same form has the same identifier.
        assert len({event_id for _, event_id in desk.cases.calls}) == 1


def test_a_second_press_while_the_first_is_under_way_does_nothing(desk: Desk) -> None:
    with desk.page(case_url(case_id(0))) as page:
        desk.cases.gate.clear()
        for _ in range(3):
            page.keyboard.press("f")
        desk.cases.gate.set()
        expect(page.locator("[data-done]")).to_be_visible()
        assert [kind for kind, _ in desk.cases.calls] == ["closed"]


def test_a_change_by_somebody_else_is_announced_and_keeps_the_ticks(desk: Desk) -> None:
    with desk.page(case_url(case_id(0))) as page:
        page.get_by_label("Tick card-100-old1", exact=True).check()
        # Nothing of the page is other than before.
        desk.publish(case_id(0), case_id(1))
        desk.cases.note(case_id(0), "bob", "e1", "Looks odd to me.")
        desk.publish(case_id(0))
        expect(page.locator("#changes")).to_contain_text("This case has changed - press R to show")
        assert page.locator("blockquote").count() == 0
        page.keyboard.press("r")
        expect(page.locator("blockquote")).to_contain_text("Looks odd to me.")
        expect(page.get_by_label("Tick card-100-old1", exact=True)).to_be_checked()


def test_keys_do_nothing_in_a_field(desk: Desk) -> None:
    with desk.page(case_url(case_id(0))) as page:
        page.locator("textarea").focus()
        page.keyboard.type("full of /?nlsu")
        expect(page.locator("textarea")).to_have_value("full of /?nlsu")
        assert desk.cases.calls == []
        page.keyboard.press("Escape")
        page.keyboard.press("/")
        expect(page.locator("#search")).to_be_focused()


def test_the_keyboard_alone_is_enough(desk: Desk) -> None:
    with desk.page() as page:
        for key in ("j", "ArrowDown", "j", "k"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_contain_text("card-100")
        # Scripts put drafts in the place of what was typed before they came.
        desk.await_scripts(page)
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "note-text":
                break
        page.keyboard.type("By keyboard.")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("blockquote")).to_contain_text("By keyboard.")
        page.keyboard.press("?")
        expect(page.locator("#help")).to_be_visible()
        page.keyboard.press("Enter")
        expect(page.locator("#help")).to_be_hidden()


def test_without_script_filters_and_actions_work(desk: Desk) -> None:
    with desk.context(java_script_enabled=False) as context:
        page = context.pages[0]
        page.goto(desk.address)
        page.locator(".filters [name=q]").fill("card-105")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator(CARDS_SHOWN)).to_have_text(["card-105"])
        page.get_by_role("button", name="Next case").click()
        page.get_by_role("button", name="Fraud").click()
        expect(page.locator("[data-done]")).to_contain_text("Labelled 2 transactions as fraud.")
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("h1")).to_contain_text("open")


def test_an_auditor_reads_and_changes_nothing(desk: Desk) -> None:
    with desk.page(case_url(case_id(0)), role="auditor") as page:
        assert page.locator("main form[method=post]").count() == 0
        assert page.locator("main input[type=checkbox]").count() == 0
        expect(page.get_by_role("link", name="Export")).to_be_visible()
        for key in "fsun":
            page.keyboard.press(key)
        assert desk.cases.calls == []


# --- Blind cases, identifiers, files ----------------------------------------------------------------------------------


def test_a_blind_case_shows_no_score_anywhere(desk: Desk) -> None:
    client = desk.console.signed_in("supervisor", "reader")
    own = desk.cases.cases[case_id(BLIND)]
    desk.cases.cases = {case_id(BLIND): own}
    pages = {
        path: client.get(path).text
        for path in (
            "/",
            "/queue",
            "/queue.csv",
            "/?state=any&q=card",
            case_url(case_id(BLIND)),
            case_url(case_id(BLIND), "/export.html"),
        )
    }
    for path, text in pages.items():
        shown = re.sub(r"<time[^>]*>|<footer.*?</footer>|[0-9a-f]{32,64}", "", text)
        assert "card-102" in shown, path
        assert not re.search(
            r"0\.9089|90\.9|17\.6|AMOUNT_UNUSUAL|electronics-outlet-771 is", shown.split("<main")[-1]
        ), path
    assert all(BLIND_SENTENCE in pages[path] for path in pages if "/cases/" in path)


def test_identifiers_with_markup_stay_text(desk: Desk) -> None:
    desk.cases.cases = {f"{text}-1": case_view(f"{text}-1", text) for text in HOSTILE}
    for case in list(desk.cases.cases.values()):
        held = case.row._replace(holder="<i>bob</i>", holder_until_us=us(datetime.now(UTC) + timedelta(minutes=5)))
        desk.cases.cases[case.row.case_id] = case._replace(row=held)
        desk.cases.note(case.row.case_id, "bob", "e", "<script>document.title=1</script>")
    with desk.page(viewport=NARROW) as page:
        assert page.locator(CARDS_SHOWN).count() == len(HOSTILE)
        addresses = [str(link.get_attribute("href")) for link in page.locator(f"{CARDS_SHOWN} a").all()]
        for address, text in zip(addresses, HOSTILE, strict=True):
            desk.open(page, address)
            expect(page.locator("#case")).to_have_attribute("data-case", f"{text}-1")
            assert page.title().startswith("Card ")
            assert page.evaluate(WIDER) == 0
            assert page.locator("main img, main i, #case b").count() == 0
            assert page.locator("script:not([src]):not([type='application/json'])").count() == 0
        for path in ("/?state=any&q=" + "%3Cimg%20src%3Dx%3E", "/?q=%22%3E%3Cimg%3E"):
            desk.open(page, path)
            assert page.locator("main img").count() == 0


def test_the_csv_is_that_of_the_filter(desk: Desk) -> None:
    desk.cases.cases["=1+1-1"] = case_view("=1+1-1", "=1+1")
    answer = desk.console.signed_in("analyst").get("/queue.csv?min_loss=900")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    lines = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert len(lines) == 11
    assert {"'=1+1", "card-100"} <= {line["card_id"] for line in lines}
    assert (900.0, queue_pages.CSV_ROWS) in [(each.least_loss, each.limit) for each in desk.cases.filters]


def test_an_exported_case_opens_without_a_network_and_has_its_record(desk: Desk, tmp_path: Path) -> None:
    desk.cases.note(case_id(0), "bob", "e1", "Looks <odd> to me.")
    with desk.page(case_url(case_id(0))) as page:
        with page.expect_download() as download:
            page.get_by_role("link", name="Export").click()
        path = tmp_path / "case.html"
        download.value.save_as(path)
        record = re.search('id="record">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
        assert record is not None
        other = page.context.new_page()
        requests: list[str] = []
        other.on("request", lambda request: requests.append(request.url))
        other.goto(path.as_uri())
        assert requests == [path.as_uri()]
        expect(other.locator("code")).to_have_text(hashlib.sha256(record[1].encode()).hexdigest())
        for text in (
            "Looks <odd> to me.",
            "card_amount_to_regular",
            "lgbm-2026-11-30",
            "equal to the last bit",
            "d-93f1c0",
        ):
            expect(other.locator("main")).to_contain_text(text)
        assert Axe().run(other).response["violations"] == []


def test_an_unknown_case_is_not_found(desk: Desk) -> None:
    client = desk.console.signed_in("analyst")
    for path in ("/cases/none", "/cases/none/learned"):
        assert client.get(path).status == 404
    client.get("/")
    assert client.post("/cases/none/reopen").status == 403
    assert client.post(case_url(case_id(0), "/label"), {"outcome": "maybe", "transaction": "t"}).status == 400
    assert client.post(case_url(case_id(0), "/label"), {"outcome": "fraud"}).status == 400
    assert client.post(case_url(case_id(0), "/note"), {"text": " "}).status == 400
    assert client.post("/close", {"case": case_id(0)}).status == 403
    eventually(lambda: desk.cases.calls == [])
