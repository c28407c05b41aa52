"""Errors as sentences for people."""

import errno
from typing import Final

from pydantic import ValidationError
from pydantic_settings import SettingsError

from pipeline.kafka.clients import FailedRequest, failure_text
from pipeline.settings import Settings, invalid_settings, unreadable_setting

_OURS: Final = frozenset({"agents", "pipeline", "schemas"})
_FAILED_REQUESTS: Final[tuple[type[BaseException], ...]] = (FailedRequest,)
_ADVICE: Final = {
    errno.ENOSPC: "free space there, or choose another directory with FRAUD_PIPELINE_DATA_DIR",
    errno.EDQUOT: "free space there, or choose another directory with FRAUD_PIPELINE_DATA_DIR",
    errno.EACCES: "give this user the right to it",
    errno.EROFS: "choose another directory with FRAUD_PIPELINE_DATA_DIR",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def explained(error: BaseException) -> str | None:
    """Return an error as one sentence; None for one that says nothing to its reader (an error of the program)."""
    if isinstance(error, ValidationError):
        return invalid_settings(error) if error.title == Settings.__name__ else None
    if isinstance(error, SettingsError):
        return unreadable_setting(error)
    if isinstance(error, _FAILED_REQUESTS):
        return failure_text(error)
    if isinstance(error, MemoryError):
        return "the machine has no memory left for this"
    if isinstance(error, OSError):
        return _of_system(error)
    # What the project raises itself says what to do.
    return str(error) if type(error).__module__.partition(".")[0] in _OURS else None


def notes_of(error: BaseException) -> list[str]:
    """Return the notes that were added to an error, such as where its batch lies."""
    return list(getattr(error, "__notes__", []))


def _of_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}{error.strerror or error}{f': {advice}' if advice else ''}"
