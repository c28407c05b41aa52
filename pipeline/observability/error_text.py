"""Errors, and variables that nobody reads, as sentences for people."""

import difflib
import errno
import re
from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from pipeline.kafka.cluster.errors import FailedRequest, failure_text
from pipeline.settings import PREFIX, Settings
from pipeline.settings.secret_files import SettingFileError

_OURS: Final = frozenset({"agents", "pipeline", "schemas"})
_OURS_BEGIN: Final = "Value error, "
"""The text that pydantic puts before the sentence of a check of ours."""
_FAILED_REQUESTS: Final[tuple[type[BaseException], ...]] = (FailedRequest,)
_ADVICE: Final = {
    errno.ENOSPC: "free space there, or choose another directory with FRAUD_PIPELINE_DATA_DIR",
    errno.EDQUOT: "free space there, or choose another directory with FRAUD_PIPELINE_DATA_DIR",
    errno.EACCES: "give this user the right to it",
    errno.EROFS: "choose another directory with FRAUD_PIPELINE_DATA_DIR",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_OF_KUBERNETES: Final = re.compile(
    r"(^|_)(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$"
)
"""Variables by which Kubernetes tells every container of a service whose name begins as our variables do."""


def explained(error: BaseException) -> str | None:
    """Return an error as one sentence; None for one that says nothing to its reader (an error of the program)."""
    if isinstance(error, ValidationError):
        return _invalid_settings(error) if error.title == Settings.__name__ else None
    if isinstance(error, SettingsError):
        return _unreadable_setting(error)
    if isinstance(error, _FAILED_REQUESTS):
        return failure_text(error)
    if isinstance(error, MemoryError):
        return "the machine has no memory left for this"
    if isinstance(error, OSError):
        return _of_system(error)
    # What the project raises itself says what to do.
    return str(error) if type(error).__module__.partition(".")[0] in _OURS else None


def _of_system(error: OSError) -> str | None:
    """Return what the system says; None for an error that says neither where nor what (a time limit, a socket)."""
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = _ADVICE.get(error.errno or 0)
    if not where and not advice and (error.errno is not None or not str(error)):
        return None
    return f"{where}{error.strerror or error}{f': {advice}' if advice else ''}"


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each variable that looks like a setting and is none; it has no value of theirs."""
    settings = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    known = {*settings, *(f"{name}_FILE" for name in settings)}
    for name, value in sorted(environment.items()):
        given = name.upper()
        if not given.startswith(PREFIX) or given in known:
            continue
        if _OF_KUBERNETES.search(given.removeprefix(PREFIX)) or value.startswith(("tcp://", "udp://", "sctp://")):
            continue
        near = difflib.get_close_matches(given.removeprefix(PREFIX), [name.removeprefix(PREFIX) for name in known], 1)
        yield f"{name} is no setting, and is ignored{f': do you mean {PREFIX}{near[0]}?' if near else ''}"


def _invalid_settings(error: ValidationError) -> str:
    """Return what is wrong with which variables, without any value: one may be a secret."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(_invalid_setting(problem) for problem in problems)


def _invalid_setting(problem: ErrorDetails) -> str:
    text = "it is no setting" if problem["type"] == "extra_forbidden" else _without_start(problem["msg"])
    # A check of several settings names them itself.
    return f"{_variable(str(problem['loc'][0]))} cannot be used: {text}" if problem["loc"] else text


def _unreadable_setting(error: SettingsError) -> str:
    """Return the same of a variable, or of a file, that should hold JSON."""
    if isinstance(error, SettingFileError):
        return str(error)
    name = re.search(r'field "(\w+)"', str(error))
    return f"{_variable(name[1]) if name else 'a setting'} cannot be used: it should be a JSON object"


def _variable(name: str) -> str:
    return name if name.isupper() else f"{PREFIX}{name.upper()}"


def _without_start(text: str) -> str:
    text = text.removeprefix(_OURS_BEGIN)
    return text if text.startswith(PREFIX) else text[:1].lower() + text[1:]
