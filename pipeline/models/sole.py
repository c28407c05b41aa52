"""One process of a service on a cluster: of two, the one that has written last goes on, and the other one ends."""

import os
import socket
from typing import Any

from pipeline.models.history import VersionHistory


class ServiceEnded(Exception):
    """The service has to end; the text says why."""


class SoleProcess:
    """This process of a service, as the figures of its records name it.

    Args:
        service: The command's name.
    """

    def __init__(self, service: str) -> None:
        self._service, self._identity = service, f"{socket.gethostname()}-{os.getpid()}"
        self._before: str | None = None
        """The last writer that may be there."""
        self._started = False

    @property
    def figures(self) -> dict[str, Any]:
        """What each record that this process writes has among its figures."""
        return {self._service: self._identity}

    def refuse_other(self, history: VersionHistory) -> None:
        """End where another process of the service has written since the first call.

        Args:
            history: What `control` has by now.

        Raises:
            ServiceEnded: Another one has.
        """
        last = history.last_writer(self._service)
        if not self._started or last == self._identity:
            self._before, self._started = last, True
        elif last != self._before:
            raise ServiceEnded(
                f"another {self._service} ({last or 'unnamed'}) has written since: this one ends. Run one "
                f"{self._service} a cluster"
            )
