"""Answers of all pages: a page or a part of it, and the refusal of an action."""

import time
from typing import Any, Final
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from pipeline.console import presentation
from pipeline.console.action_records import ActionRefused
from pipeline.kafka.writers.producer import DeliveryFailed

UNCONFIRMED: Final = "The brokers did not confirm it. Try again: what you typed is kept, and a repeat changes nothing."


def render(
    request: Request, name: str, values: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a page, with the present time, and what makes text and identifiers of forms."""
    common = {"show": presentation, "now_us": time.time_ns() // 1_000, "new_id": lambda: uuid4().hex}
    templates: Jinja2Templates = request.app.state.templates
    return templates.TemplateResponse(request, name, common | values, status, headers)


def is_fragment(request: Request) -> bool:
    """Return whether a script of the page asked, which puts the answer into the page."""
    return request.headers.get("hx-request") == "true"


def refusal(error: Exception) -> HTTPException:
    """Return an error of an action as an error of HTTP, with a sentence for people."""
    if isinstance(error, ActionRefused):
        return HTTPException(409, str(error))
    return HTTPException(503, UNCONFIRMED) if isinstance(error, DeliveryFailed) else HTTPException(400, str(error))
