"""Signing in, passwords and accounts in a real browser, by the rules of accessibility and of the content policy."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.console.roles import Action, requires
from tests.helpers.consoles import PASSWORD, RunningConsole, served, stand_in_parts
from tests.helpers.waiting import TIMEOUT_S

WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@requires(Action.QUEUE)
async def start_page(request: Request) -> Response:
    page: Response = request.app.state.templates.TemplateResponse(request, "error.html.jinja", {"text": "Start"})
    return page


@requires(Action.STATUS)
async def status_line(request: Request) -> Response:
    return Response("")


@pytest.fixture
def console(tmp_path: Path) -> Iterator[RunningConsole]:
    with served(stand_in_parts(tmp_path), routes=[Route("/", start_page), Route("/status", status_line)]) as running:
        yield running


class Tab:
    """A tab of a browser of its own, and what its pages complain about."""

    def __init__(self, browser: Browser, console: RunningConsole, **options: Any) -> None:
        self.address = f"http://127.0.0.1:{console.port}"
        self.page: Page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(TIMEOUT_S * 1_000)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: self.complaints.append(line.text) if "Content Sec" in line.text else None)

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name).click()

    def check(self) -> None:
        """Check the page that is shown, with its styles."""
        self.page.wait_for_load_state()
        response = Axe().run(self.page).response
        assert len(response["passes"]) > 10
        assert [(found["id"], found["nodes"][0]["html"]) for found in response["violations"]] == []
        assert self.page.evaluate(WIDER) == 0
        assert self.complaints == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_people_sign_in_set_a_password_and_give_accounts(
    browser: Browser, console: RunningConsole, scheme: Any, width: int
) -> None:
    tab = Tab(browser, console, color_scheme=scheme, viewport={"width": width, "height": 800})
    tab.open(f"/link/{console.accounts.link('supervisor', 'sue')}")
    tab.check()
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("heading", name="Start")).to_be_visible()
    tab.check()

    tab.page.get_by_role("link", name="sue (supervisor)").click()
    tab.page.get_by_label("New password").fill(PASSWORD)
    tab.page.get_by_label("Once more").fill(PASSWORD)
    tab.check()
    tab.press("Change password")
    expect(tab.page.get_by_role("heading", name="Start")).to_be_visible()

    tab.page.get_by_role("link", name="Accounts").click()
    tab.page.get_by_label("Name").fill("ana")
    tab.page.get_by_label("Role", exact=True).select_option("analyst")
    tab.page.get_by_role("button", name="Make link").last.click()
    link = tab.page.get_by_label("Send this link").input_value()
    tab.check()
    other = Tab(browser, console)
    other.page.goto(link)
    other.press("Sign in as ana")
    expect(other.page.get_by_role("link", name="ana (analyst)")).to_be_visible()

    tab.press("Sign out")
    expect(tab.page).to_have_url(re.compile("/login$"))
    tab.open("/accounts?of=<b>")
    tab.page.get_by_label("Name").fill("sue")
    tab.page.get_by_label("Password").fill("wrong")
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("alert")).to_contain_text("Name or password is wrong")
    tab.check()
    tab.page.get_by_label("Name").fill("sue")
    tab.page.get_by_label("Password").fill(PASSWORD)
    tab.page.keyboard.press("Enter")
    expect(tab.page).to_have_url(re.compile(r"/accounts\?of="))
    expect(tab.page.get_by_role("row", name="ana analyst none")).to_be_visible()
    tab.check()
    for used in (tab, other):
        used.page.context.close()


def test_no_other_site_uses_a_session(browser: Browser, console: RunningConsole) -> None:
    """Forms, frames and scripts of a page of another origin get nothing; a link of it works."""
    tab = Tab(browser, console)
    tab.open(f"/link/{console.accounts.link('supervisor', 'sue')}")
    tab.press("Sign in as sue")
    expect(tab.page.get_by_role("heading", name="Start")).to_be_visible()

    body = (
        f'<a href="{tab.address}/accounts">go</a><iframe src="{tab.address}/login"></iframe>'
        f'<form method="post" action="{tab.address}/logout"><button>press</button></form>'
    )
    tab.page.route("https://evil.example/**", lambda route: route.fulfill(content_type="text/html", body=body))
    tab.page.goto("https://evil.example/")
    read = f"fetch('{tab.address}/accounts', {{credentials: 'include'}}).then(() => 'read', () => 'refused')"
    assert tab.page.evaluate(read) == "refused"
    assert tab.page.frames[1].evaluate("document.body.innerText") != "Sign in"
    tab.press("press")
    expect(tab.page.locator("body")).to_contain_text("Another site has sent this form")
    tab.page.goto("https://evil.example/")
    tab.page.get_by_role("link", name="go").click()
    expect(tab.page.get_by_role("heading", name="Accounts")).to_be_visible()
    tab.page.context.close()
