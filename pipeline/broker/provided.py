"""The cluster that a program works with: the given one, an embedded broker that runs already, or one of its own."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.broker.local import running_broker, serving
from pipeline.broker.node import POLL_S, START_TIMEOUT_S, EmbeddedBroker
from pipeline.broker.process import BrokerError, BrokerInUse
from pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class ProvidedBroker:
    """A cluster to use.

    ``embedded`` is set where this process started it, ``data_dir`` where any process of the project did.
    """

    bootstrap_servers: str
    embedded: EmbeddedBroker | None = None
    data_dir: Path | None = None

    def check(self) -> None:
        """Raise ``BrokerError`` when an embedded broker has died or its process stopped it; cheap, so ask often."""
        if self.embedded is not None:
            self.embedded.check()
        elif self.data_dir is not None and serving(self.data_dir) != self.bootstrap_servers:
            raise BrokerError(
                f"the embedded broker at {self.bootstrap_servers}, which another process started, is gone. "
                f"Start it again, for instance with `fraud-pipeline broker`; its log is {self.data_dir / 'broker.log'}."
            )

    def hand_over(self) -> None:
        """Let a broker that this process started run until the process ends, through any other image that it loads."""
        if self.embedded is not None:
            self.embedded.hand_over()


@contextlib.contextmanager
def provide_broker(settings: Settings) -> Iterator[ProvidedBroker]:
    """The given cluster, else the running embedded broker, else one that is started here and stopped at the end.

    Nothing is started when ``settings.kafka_bootstrap_servers`` is set. Raises ``BrokerError``.
    """
    if settings.kafka_bootstrap_servers is not None:
        yield ProvidedBroker(settings.kafka_bootstrap_servers)
        return
    data_dir = settings.data_dir / "kafka"
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        if (address := running_broker(data_dir)) is not None:
            yield ProvidedBroker(address, data_dir=data_dir)
            return
        broker = EmbeddedBroker(data_dir)
        try:
            broker.start()
        except BrokerInUse:
            # Another process is starting it, or stopping it; the next look shows which.
            if time.monotonic() > deadline_s:
                raise
            time.sleep(POLL_S)
            continue
        try:
            yield ProvidedBroker(broker.bootstrap_servers, embedded=broker, data_dir=data_dir)
        finally:
            broker.stop()
        return
