"""The queue's pages: cases by expected loss, the next case, bulk close, search, CSV and the status line."""

import logging
import time
from collections.abc import Sequence
from typing import Any, Final, get_args
from urllib.parse import urlencode

from starlette.datastructures import FormData, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from pipeline.console import presentation
from pipeline.console.action_records import ActionRefused
from pipeline.console.actions import ShownAlerts
from pipeline.console.guard import audit
from pipeline.console.responses import is_fragment, refusal, render
from pipeline.console.roles import Action, requires
from pipeline.console.views import QueueFilter, QueueState
from pipeline.kafka.writers.producer import DeliveryFailed
from pipeline.protection.tokens import CARD_ID, TokenKeys

PAGE_ROWS: Final = 100
CSV_ROWS: Final = 100_000
MOST_BULK_CASES: Final = 1_000
NOTHING_LEFT: Final = "No case of this queue is left that nobody holds."


def queue_filter(values: QueryParams | Any, limit: int = PAGE_ROWS) -> QueueFilter:
    """Read a filter from the parameters of a query or a form.

    Raises:
        HTTPException: A number is none (400).
    """
    status: QueueState = next((known for known in get_args(QueueState) if known == values.get("state")), "open")
    try:
        least_loss, after = float(values.get("min_loss") or 0), int(values.get("after") or 0)
    except ValueError:
        raise HTTPException(400, "Give the least expected loss as a number, such as 250.") from None
    if not 0 <= least_loss < 1e15 or not 0 <= after < 2**31:
        raise HTTPException(400, "Give the least expected loss as a number, such as 250.")
    return QueueFilter(str(values.get("q") or ""), status, str(values.get("holder") or ""), least_loss, after, limit)


def filter_query(wanted: QueueFilter, after: int = 0) -> str:
    """Return a filter as the query of an address, without what is as usual."""
    values: dict[str, object] = {"q": wanted.text, "state": "" if wanted.status == "open" else wanted.status}
    values |= {
        "holder": wanted.holder,
        "min_loss": f"{wanted.least_loss:.15g}" if wanted.least_loss else "",
        "after": after,
    }
    return urlencode({name: value for name, value in values.items() if value})


def _queue_values(request: Request, wanted: QueueFilter) -> dict[str, Any]:
    page = request.app.state.parts.store.queue(wanted, time.time_ns() // 1_000)
    losses = [row.expected_loss for row in page.rows if row.expected_loss is not None]
    return {
        "page": page,
        "wanted": wanted,
        "query": filter_query(wanted),
        "largest": max(losses, default=0.0),
        "earlier": filter_query(wanted, max(wanted.after - wanted.limit, 0)) if wanted.after else None,
        "later": filter_query(wanted, wanted.after + wanted.limit)
        if wanted.after + len(page.rows) < page.total
        else None,
        "here": filter_query(wanted, wanted.after),
        "notice": None,
        "with_notice": False,
    }


@requires(Action.QUEUE)
def queue(request: Request) -> Response:
    """Show the queue; the number of a card is searched by its token, which takes its place."""
    wanted = queue_filter(request.query_params)
    wanted = wanted._replace(text=_tokenised(request, wanted.text.strip()))
    return render(request, "queue.html.jinja", _queue_values(request, wanted))


@requires(Action.QUEUE)
def queue_rows(request: Request) -> Response:
    """Return the rows of the queue as a fragment."""
    return render(request, "queue_rows.html.jinja", _queue_values(request, queue_filter(request.query_params)))


@requires(Action.QUEUE)
def queue_csv(request: Request) -> Response:
    """Send all rows of a filter as CSV, read at once so that none is missed or repeated."""
    wanted = queue_filter(request.query_params, CSV_ROWS)._replace(after=0)
    rows = request.app.state.parts.store.queue(wanted, time.time_ns() // 1_000).rows
    headers = {"content-disposition": 'attachment; filename="queue.csv"'}
    return Response(presentation.csv_text(rows), media_type="text/csv; charset=utf-8", headers=headers)


@requires(Action.CLAIM)
def next_case(request: Request) -> Response:
    """Claim the next case that nobody holds, and open it."""
    form = request.state.form
    wanted = queue_filter(form)._replace(after=0)
    parts, account = request.app.state.parts, request.state.account
    try:
        case_id = parts.actions.claim_next(wanted, account.name, str(form.get("event_id", "")))
    except (ActionRefused, DeliveryFailed) as error:
        raise refusal(error) from None
    if case_id is not None:
        address = f"{presentation.case_url(case_id)}?{filter_query(wanted)}".rstrip("?")
        return Response(headers={"hx-redirect": address}) if is_fragment(request) else RedirectResponse(address, 303)
    if is_fragment(request):
        raise HTTPException(404, NOTHING_LEFT)
    values = _queue_values(request, wanted)
    values["notice"] = NOTHING_LEFT
    return render(request, "queue.html.jinja", values)


def _shown_alerts(form: FormData) -> dict[str, ShownAlerts]:
    """Return what the rows of a form showed, by case; raises ValueError."""
    found = {}
    for text in form.getlist("shown"):
        match str(text).split(" ", 2):
            case [alerts, last_raised_us, case_id] if alerts.isdecimal() and last_raised_us.isdecimal():
                found[case_id] = ShownAlerts(int(alerts), int(last_raised_us))
            case _:
                raise ValueError("The form cannot be read: load the queue again.")
    return found


@requires(Action.CLOSE)
def close_cases(request: Request) -> Response:
    """Close the ticked cases with a reason."""
    form = request.state.form
    cases = [str(case_id) for case_id in form.getlist("case")]
    reason, event_id = str(form.get("reason", "")).strip(), str(form.get("event_id", ""))
    parts, account = request.app.state.parts, request.state.account
    try:
        if not cases or not reason or len(cases) > MOST_BULK_CASES:
            raise ValueError(f"Tick 1 to {MOST_BULK_CASES:,} cases and give a reason.")
        done = parts.actions.close(cases, account.name, event_id, reason, _shown_alerts(form))
    except (ActionRefused, DeliveryFailed, ValueError) as error:
        raise refusal(error) from None
    query = str(form.get("query", ""))
    if not is_fragment(request):
        return RedirectResponse(f"/?{query}" if query else "/", 303)
    values = _queue_values(request, queue_filter(QueryParams(query)))
    values["notice"] = f"Closed {presentation.counted(len(done), 'case')}."
    if left := len(set(cases)) - len(done):
        values["notice"] += f" Left {presentation.counted(left, 'case')}: closed, held, blind, or with new alerts."
    values["with_notice"] = True
    return render(request, "queue_rows.html.jinja", values)


def _tokenised(request: Request, text: str) -> str:
    """Return the token of a card's number, or the text where it has none; the log gets the token alone."""
    if not text or request.app.state.parts.settings.token_secret_file is None:
        return text
    with TokenKeys.from_settings(request.app.state.parts.settings) as keys:
        token = keys.token((CARD_ID, text))
    if token is not None:
        audit(request.scope, "searched", logging.INFO, token=token)
    return token or text


@requires(Action.STATUS)
def status(request: Request) -> Response:
    """Return the line at the top as a fragment."""
    parts = request.app.state.parts
    figures = parts.status.figures()
    if figures.failure is None and parts.reader is not None:
        figures = figures._replace(failure=parts.reader.failure_text)
    return render(request, "status.html.jinja", {"figures": figures})


ROUTES: Final[Sequence[Route]] = (
    Route("/", queue),
    Route("/queue", queue_rows),
    Route("/queue.csv", queue_csv),
    Route("/next", next_case, methods=["POST"]),
    Route("/close", close_cases, methods=["POST"]),
    Route("/status", status),
)
