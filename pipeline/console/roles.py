"""Roles of accounts, what each may do, and the action that a route declares."""

import functools
import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, Literal, TypeVar, get_args

from starlette.exceptions import HTTPException
from starlette.requests import Request

Role = Literal["analyst", "supervisor", "auditor", "operator"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Action(Enum):
    """Something that a route lets people do; the value completes the sentence "Your role may not ..."."""

    PUBLIC = "open this page"
    """Needs no session: sign in, static files, health."""
    SESSION = "use a session"
    """Sign out, change the own password, hear of changes."""
    STATUS = "see the status line"
    QUEUE = "see the queue"
    CASE = "see a case"
    EXPORT = "export cases"
    CLAIM = "claim a case"
    LABEL = "label transactions"
    SNOOZE = "snooze a case"
    NOTE = "write notes"
    WITHDRAW = "withdraw an action of its own"
    WITHDRAW_OTHERS = "withdraw actions of others"
    REOPEN = "reopen a case"
    CLOSE = "close several cases"
    ACCOUNTS = "manage accounts"


_EVERYBODY: Final = frozenset({Action.PUBLIC, Action.SESSION, Action.STATUS})
_READER: Final = _EVERYBODY | {Action.QUEUE, Action.CASE, Action.EXPORT}
_ANALYST: Final = _READER | {Action.CLAIM, Action.LABEL, Action.SNOOZE, Action.NOTE, Action.WITHDRAW}
ACTIONS_OF_ROLES: Final[Mapping[Role, frozenset[Action]]] = {
    "analyst": _ANALYST,
    "supervisor": _ANALYST | {Action.WITHDRAW_OTHERS, Action.REOPEN, Action.CLOSE, Action.ACCOUNTS},
    "auditor": _READER,
    "operator": _EVERYBODY,
}
"""Everything that a role may do."""


def allowed(role: Role, action: Action) -> bool:
    """Return whether accounts of ``role`` may do ``action``.

    >>> allowed("analyst", Action.LABEL), allowed("auditor", Action.LABEL)
    (True, False)
    """
    return action in ACTIONS_OF_ROLES[role]


def check_allowed(request: Request, action: Action) -> None:
    """Raise `HTTPException` where the request's account may not do ``action``: 401 without a session, else 403."""
    account = request.state.account
    if action is Action.PUBLIC:
        return
    if account is None:
        raise HTTPException(401, "Sign in first.")
    if not allowed(account.role, action):
        raise HTTPException(403, f"Your role ({account.role}) may not {action.value}: ask a supervisor.")


def requires(action: Action) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator of a route's endpoint, which may be async or not: it answers only who may do ``action``."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def answer(request: Request) -> Any:
            check_allowed(request, action)
            return await endpoint(request)

        @functools.wraps(endpoint)
        def answer_in_thread(request: Request) -> Any:
            check_allowed(request, action)
            return endpoint(request)

        checked: Any = answer if inspect.iscoroutinefunction(endpoint) else answer_in_thread
        checked.action = action
        return checked  # type: ignore[no-any-return]

    return decorate
