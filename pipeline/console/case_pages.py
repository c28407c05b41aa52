"""A case's page: why it was scored, what surrounds it, and what people do with it."""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from pipeline.console import presentation
from pipeline.console.action_records import ActionRefused
from pipeline.console.case_events import ReplayedEvent
from pipeline.console.queries import ALERTS_SHOWN
from pipeline.console.queue_pages import filter_query, queue_filter
from pipeline.console.responses import is_fragment, refusal, render
from pipeline.console.roles import Action, allowed, check_allowed, requires
from pipeline.console.views import AlertView, CaseView, Explanation, LabelView, LearnedView
from pipeline.kafka.writers.producer import DeliveryFailed

LONGEST_NOTE: Final = 10_000
POLL_S: Final = (1, 1, 2, 2, 3, 5, 5, 10, 15, 30)
"""Seconds between questions what has learned a label; the last one for all that follow."""


def find_case(request: Request, most: int = ALERTS_SHOWN) -> CaseView:
    """Return the case of an address, with ``most`` alerts.

    Raises:
        HTTPException: There is none (404).
    """
    try:
        found: CaseView = request.app.state.parts.store.case(
            request.path_params["case_id"], time.time_ns() // 1_000, most
        )
    except KeyError:
        raise HTTPException(404, "There is no such case: search for its card or its transaction.") from None
    return found


def _explained(request: Request, case: CaseView, alert_id: str | None) -> tuple[AlertView, Explanation | None]:
    """Return the alert whose score is explained, the severest open one by default, and its explanation."""
    chosen = next((view for view in case.alerts if view.alert.alert_id == alert_id), None)
    view = chosen or max(case.alerts, key=lambda view: (not view.closed, view.alert.severity))
    if case.row.blind or view.decision is None:
        return view, None
    return view, request.app.state.parts.explainer.explain(view.decision)


def _undoable(request: Request, case: CaseView) -> ReplayedEvent | None:
    account = request.state.account
    everybody = allowed(account.role, Action.WITHDRAW_OTHERS)
    return presentation.last_undoable(case.history, None if everybody else account.name)


def _case_values(request: Request, case: CaseView, event_id: str | None) -> dict[str, Any]:
    """Return the values of a case's page.

    Args:
        request: Request of the page, or of an action.
        case: The case.
        event_id: Action that has just been done.
    """
    view, explanation = _explained(request, case, request.query_params.get("alert")) if case.alerts else (None, None)
    wanted = queue_filter(request.query_params)
    alerted = {item.alert.transaction_id for item in case.alerts}
    return {
        "case": case,
        "row": case.row,
        "shown": view,
        "explanation": explanation,
        "largest": max((abs(row.share) for row in explanation.rows), default=0.0) if explanation else 0.0,
        "others": [entry for entry in case.card if entry.transaction_id not in alerted],
        "charts": {"card": presentation.points(case.card), "merchants": presentation.points(case.merchants)},
        "labels": presentation.labels_by_id(case),
        "notes": [entry for entry in case.history if entry.event.note],
        "undoable": _undoable(request, case),
        "done": next((entry for entry in case.history if entry.event.event_id == event_id), None) if event_id else None,
        "wanted": wanted,
        "query": filter_query(wanted),
        "digest": presentation.digest(case),
    }


@requires(Action.CASE)
def show_case(request: Request) -> Response:
    """Show a case, or only its part of the page for a script."""
    values = _case_values(request, find_case(request), request.query_params.get("done"))
    return render(request, "case_body.html.jinja" if is_fragment(request) else "case.html.jinja", values)


@requires(Action.EXPORT)
def export_case(request: Request) -> Response:
    """Send a case as one file that needs nothing else."""
    case = find_case(request, sys.maxsize)
    explained = [_explained(request, case, view.alert.alert_id) for view in case.alerts]
    data = presentation.record(case).decode()
    values = _case_values(request, case, None) | {"explained": explained, "record": data}
    page = render(request, "case_export.html.jinja", values)
    page.headers["content-disposition"] = 'attachment; filename="case.html"'
    return page


@requires(Action.CASE)
def learned(request: Request) -> Response:
    """Return when the labels of an action count, and which versions have learned them."""
    case = find_case(request)
    event_id, asked = request.query_params.get("event", ""), request.query_params.get("asked", "0")
    entry = next((entry for entry in case.history if entry.event.event_id == event_id), None)
    views = _learned(request, case, entry.event.labels) if entry is not None else []
    times = min(int(asked[:3]), len(POLL_S)) if asked.isascii() and asked.isdigit() else 0
    values = {
        "sentences": list(dict.fromkeys(view.sentence for view in views)),
        "pending": entry is not None and any(view.late is None and view.river is None for view in views),
        "asked": times + 1,
        "delay_s": POLL_S[min(times, len(POLL_S) - 1)],
        "event_id": event_id,
        "case": case,
    }
    return render(request, "learned.html.jinja", values)


def _learned(request: Request, case: CaseView, label_ids: Sequence[str]) -> list[LearnedView]:
    """Return what became of labels, on alerts of a case and on other transactions of its card."""
    parts, wanted = request.app.state.parts, set(label_ids)
    decisions = {view.alert.transaction_id: view.decision for view in case.alerts}
    found: dict[str, LabelView] = {}
    for view in case.alerts:
        found |= {str(item.label.label_id): item for item in view.labels if item.label.label_id in wanted}
    for entry in case.card:
        if entry.label is None or entry.transaction_id in decisions or len(found) == len(wanted):
            continue
        labels = parts.store.labels_of(entry.transaction_id, entry.card_id)
        found |= {str(item.label.label_id): item for item in labels if item.label.label_id in wanted}
    return [parts.status.learned(item, decisions.get(item.label.transaction_id)) for item in found.values()]


def _form_action(
    action: Action, method: str, read: Callable[[FormData], dict[str, Any]] = lambda _: {}
) -> Callable[..., Any]:
    """Return an endpoint that does an action of a form, and shows the case as it is then.

    Args:
        action: Action of `pipeline.console.roles` that the account needs.
        method: Method of `pipeline.console.actions.CaseActions`.
        read: Returns its further arguments.
    """

    @requires(action)
    def endpoint(request: Request) -> Response:
        form = request.state.form
        event_id, case_id = str(form.get("event_id", "")), request.path_params["case_id"]
        actions, account = request.app.state.parts.actions, request.state.account
        if action is Action.WITHDRAW:
            _check_own(request, str(form.get("undoes", "")))
        try:
            getattr(actions, method)(case_id, account.name, event_id, **read(form))
        except KeyError:
            raise HTTPException(404, "There is no such case: search for its card or its transaction.") from None
        except (ActionRefused, DeliveryFailed, ValueError) as error:
            raise refusal(error) from None
        if not is_fragment(request):
            query = f"{request.url.query}&done={event_id}".lstrip("&")
            return RedirectResponse(f"{presentation.case_url(case_id)}?{query}", 303)
        return render(request, "case_body.html.jinja", _case_values(request, find_case(request), event_id))

    return cast(Callable[..., Any], endpoint)


def _check_own(request: Request, event_id: str) -> None:
    """Raise `HTTPException` where an action is somebody else's, and the account may not withdraw those."""
    account, entry = request.state.account, request.app.state.parts.store.event(event_id)
    if entry is not None and entry.event.by != account.name:
        check_allowed(request, Action.WITHDRAW_OTHERS)


def _label(form: FormData) -> dict[str, Any]:
    outcome, transactions = str(form.get("outcome", "")), [str(item) for item in form.getlist("transaction")]
    if outcome not in {"fraud", "legitimate"}:
        raise ValueError("Choose fraud or legitimate.")
    if not transactions:
        raise ValueError("Tick the transactions that you label.")
    alerts = [str(item) for item in form.getlist("alert")]
    return {"outcome": outcome, "transactions": transactions, "alerts": alerts}


def _snooze(form: FormData) -> dict[str, Any]:
    own = f"{form.get('own', '')}{form.get('offset', '')}"
    end = presentation.snooze_end(str(form.get("until", "")), own, datetime.now(UTC))
    return {"until": end, "note": str(form.get("note", "")).strip()[:LONGEST_NOTE]}


def _note(form: FormData) -> dict[str, Any]:
    text = str(form.get("text", "")).strip()
    if not 0 < len(text) <= LONGEST_NOTE:
        raise ValueError(f"Write a note of 1 to {LONGEST_NOTE:,} characters.")
    return {"text": text}


def _withdraw(form: FormData) -> dict[str, Any]:
    return {"undoes": str(form.get("undoes", ""))}


class IdentifierConvertor(StringConvertor):
    """Any text in an address, with slashes and ends of lines."""

    regex = "(?s:.+)"


register_url_convertor("identifier", IdentifierConvertor())
ROUTES: Final[Sequence[Route]] = (
    Route("/cases/{case_id:identifier}/claim", _form_action(Action.CLAIM, "claim"), methods=["POST"]),
    Route("/cases/{case_id:identifier}/label", _form_action(Action.LABEL, "label", _label), methods=["POST"]),
    Route("/cases/{case_id:identifier}/snooze", _form_action(Action.SNOOZE, "snooze", _snooze), methods=["POST"]),
    Route("/cases/{case_id:identifier}/note", _form_action(Action.NOTE, "note", _note), methods=["POST"]),
    Route("/cases/{case_id:identifier}/reopen", _form_action(Action.REOPEN, "reopen"), methods=["POST"]),
    Route("/cases/{case_id:identifier}/undo", _form_action(Action.WITHDRAW, "withdraw", _withdraw), methods=["POST"]),
    Route("/cases/{case_id:identifier}/export.html", export_case),
    Route("/cases/{case_id:identifier}/learned", learned),
    # The last: it takes whatever is left.
    Route("/cases/{case_id:identifier}", show_case),
)
