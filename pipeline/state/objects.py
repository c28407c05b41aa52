"""Snapshot storage: a local directory or any fsspec address, with writes that are whole or not there at all."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec

from pipeline.state.durability import flush_directory
from pipeline.state.errors import UnusableAddress

_CHUNK_BYTES: Final = 1 << 20
_TEMPORARY: Final = ".writing-"
_ABANDONED_S: Final = 3_600.0

T = TypeVar("T")


class ObjectInfo(NamedTuple):
    """An object in a listing."""

    size_bytes: int
    age_s: float
    """Seconds since it was written, by this machine's clock."""


_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s]*@")
_PARAMETERS: Final = re.compile(r"(?<=\?)[^\s'\"]+")
_HIDDEN: Final = "***"


def shown_url(text: str) -> str:
    """Return an address, or a text that names some, as logs and errors may show it: without user, password and query.

    >>> shown_url("sftp://worker:secret@host/snapshots?key=secret")
    'sftp://***@host/snapshots?***'
    """
    return _PARAMETERS.sub(_HIDDEN, _CREDENTIALS.sub(f"{_HIDDEN}@", text))


def _passwords(url: str) -> tuple[str, ...]:
    """Return the parts of an address that no error may repeat, in every form in which a file system may have them."""
    found = {password for part in url.split("::") if (password := urlsplit(part).password)}
    return tuple({form for password in found for form in (password, unquote(password))})


class ObjectStore:
    """Named objects below one address; names have parts separated by slashes. Every failure is an OSError.

    Args:
        file_system: An fsspec file system, on which a put is atomic, as it is on object stores.
        root: Where it begins there.
        passwords: What occurs in the text of no error.
    """

    def __init__(self, file_system: Any, root: str, passwords: Sequence[str] = ()) -> None:
        self._files = file_system
        self._root = root.rstrip("/")
        self._passwords = passwords

    def listing(self, directory: str) -> dict[str, ObjectInfo]:
        """The objects directly in ``directory`` by their last name part; none where there is no such directory."""
        path = f"{self._root}/{directory}"

        def ask() -> list[dict[str, Any]]:
            self._files.invalidate_cache(path)
            entries: list[dict[str, Any]] = self._files.ls(path, detail=True)
            return entries

        try:
            entries = self._try(ask)
        except FileNotFoundError:
            return {}
        return {
            str(entry["name"]).rsplit("/", 1)[-1]: ObjectInfo(int(entry["size"]), self._age_s(entry))
            for entry in entries
            if entry["type"] == "file"
        }

    def read(self, name: str) -> bytes:
        """The content; FileNotFoundError where there is none."""
        content: bytes = self._try(lambda: self._files.cat_file(f"{self._root}/{name}"))
        return content

    def fetch(self, name: str, target: Path) -> None:
        """Copy the content to a local file; FileNotFoundError where there is none."""
        self._try(lambda: self._files.get_file(f"{self._root}/{name}", str(target)))

    def write(self, name: str, content: bytes) -> None:
        """Put an object, whole or not at all."""
        self._put(name, lambda path: self._files.pipe_file(path, content))

    def upload(self, name: str, source: Path) -> None:
        """Put a local file, whole or not at all."""
        self._put(name, lambda path: self._files.put_file(str(source), path))

    def _put(self, name: str, put: Callable[[str], object]) -> None:
        path = f"{self._root}/{name}"

        def made() -> None:
            self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            put(path)

        self._try(made)

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone is no error."""
        try:
            self._try(lambda: self._files.rm_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return

    def _try(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except Exception as error:
            shown = _as_os_error(error, self._passwords)
            if shown is error:
                raise
            raise shown from None

    def _age_s(self, entry: dict[str, Any]) -> float:
        written = next((entry[key] for key in _TIMES if entry.get(key) is not None), None)
        if written is None:
            written = self._try(lambda: self._files.modified(entry["name"]))
        if isinstance(written, str):
            written = datetime.fromisoformat(written)
        stamp_s: float = written.timestamp() if isinstance(written, datetime) else float(written)
        return time.time() - stamp_s


class LocalObjects(ObjectStore):
    """A local directory, made when something is first written; fsspec flushes nothing to disk, and renames nothing."""

    def __init__(self, root: Path) -> None:
        super().__init__(fsspec.filesystem("file"), str(root.absolute()))

    def listing(self, directory: str) -> dict[str, ObjectInfo]:
        """The objects; what a killed writer left half-written is removed when it is old."""
        now_s = time.time()
        found: dict[str, ObjectInfo] = {}
        try:
            entries = list(os.scandir(Path(self._root, directory)))
        except FileNotFoundError:
            return found
        for entry in entries:
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if not entry.is_file():
                continue
            if not entry.name.startswith(_TEMPORARY):
                found[entry.name] = ObjectInfo(status.st_size, now_s - status.st_mtime)
            elif now_s - status.st_mtime > _ABANDONED_S:
                Path(entry.path).unlink(missing_ok=True)
        return found

    def write(self, name: str, content: bytes) -> None:
        """Write beside the target, flush to disk, rename."""
        self._write_whole(name, lambda file: file.write(content))

    def upload(self, name: str, source: Path) -> None:
        """Copy beside the target, flush to disk, rename."""
        with source.open("rb") as content:
            self._write_whole(name, lambda file: shutil.copyfileobj(content, file, _CHUNK_BYTES))

    def _write_whole(self, name: str, fill: Callable[[Any], object]) -> None:
        target = Path(self._root, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_directory(target.parent)


def open_object_store(url: str) -> ObjectStore:
    """Open the object store at a path, a ``file://`` URL, or a URL of any other fsspec file system.

    Raises:
        UnusableAddress: No file system of that name is known, or its package is missing.
        OSError: It cannot be reached.
    """
    parts = urlsplit(url)
    if "://" not in url:
        return LocalObjects(Path(url))
    if parts.scheme in ("file", "local"):
        return LocalObjects(Path(unquote(parts.netloc + parts.path)))
    passwords = _passwords(url)
    try:
        file_system, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UnusableAddress(f"{shown_url(url)} cannot be used: {_without(str(error), passwords)}") from None
    except Exception as error:
        raise _as_os_error(error, passwords) from None
    return ObjectStore(file_system, root, passwords)


_TIMES: Final = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Names that file systems give the time of writing in their listings."""


def _as_os_error(error: Exception, passwords: Sequence[str]) -> OSError:
    """Return an error of a file system (of HTTP, of credentials) as what callers expect of a disk."""
    text = _without(str(error), passwords)
    if not isinstance(error, OSError):
        return OSError(f"{type(error).__name__}: {text}")
    if text == str(error):
        return error
    shown = type(error)(text)
    shown.errno = error.errno
    return shown


def _without(text: str, passwords: Sequence[str]) -> str:
    for password in passwords:
        text = text.replace(password, _HIDDEN)
    return shown_url(text)
