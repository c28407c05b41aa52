"""The end of transactions that an earlier process, or a dead holder of partitions, has left open."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pipeline.kafka.cluster.clients import CALL_TIMEOUT_S
from pipeline.kafka.cluster.errors import SessionError, Stopped
from pipeline.kafka.cluster.retries import Retries
from pipeline.kafka.records.member import Member
from pipeline.kafka.writers.transactional_producers import TransactionalProducers
from pipeline.settings import Settings

log = logging.getLogger(__name__)

MOST_START_S: Final = 240.0
"""Longest wait, at a start, for the end of unfinished transactions: of coordinators that move, and of busy brokers."""


def end_unfinished(bootstrap: str, settings: Settings, producers: Mapping[str, int]) -> None:
    """Abort the transactions that an earlier process of this worker has left open.

    Whoever reads what is committed, and whoever asks for a group's offsets, waits for their end: for the brokers'
    time limit, if nobody ends them.

    Args:
        bootstrap: Addresses of brokers.
        settings: The worker's settings.
        producers: Number of producers of each agent.

    Raises:
        SessionError: An id cannot be initialised, or not within `MOST_START_S`.
    """
    deadline_s = time.monotonic() + MOST_START_S

    def end(agent: str) -> None:
        def waiting() -> None:
            if time.monotonic() > deadline_s:
                raise SessionError(
                    f"agent {agent}: no broker has ended what an earlier process of this worker left open within "
                    f"{MOST_START_S:.0f} s: look at the brokers' transaction coordinators"
                )

        _end_agent(bootstrap, settings, agent, producers[agent], threading.Event(), waiting)

    # All at once: each takes as long as a client needs to connect.
    with ThreadPoolExecutor(len(producers)) as threads:
        list(threads.map(end, producers))


def _end_agent(
    bootstrap: str,
    settings: Settings,
    agent: str,
    producers: int,
    stopping: threading.Event,
    waiting: Callable[[], None],
) -> None:
    """Abort the transactions of one agent of the instance that ``settings`` name, and fence who began them."""
    if settings.delivery != "exactly_once":
        return
    own = TransactionalProducers(
        bootstrap, settings, agent, stopping=stopping, waiting=waiting, renewed=lambda: None,
        marks=False, producers=producers,
    )  # fmt: skip
    try:
        own.start()
    finally:
        own.close()


def end_left_open(member: Member, instances: Collection[str], retries: Retries) -> None:
    """Abort the transactions of other instances, which died with partitions of an agent.

    Args:
        member: The member that takes the partitions over.
        instances: Names of the instances.
        retries: Its waits.

    Raises:
        Stopped: The worker ends.
    """
    for instance in sorted(instances):
        log.warning("%s: instance %s died with partitions; its transactions are aborted", member.agent, instance)
        settings = member.settings.model_copy(update={"instance": instance})
        deadline_s = time.monotonic() + CALL_TIMEOUT_S

        def waiting(until_s: float = deadline_s) -> None:
            retries.restoring()
            if time.monotonic() > until_s:
                raise SessionError("no transaction coordinator answers")

        try:
            _end_agent(member.bootstrap, settings, member.agent, member.producers, retries.requested, waiting)
        except Stopped:
            raise
        except SessionError as error:
            # By now the brokers do it by themselves.
            log.warning("%s: the transactions of instance %s are waited for: %s", member.agent, instance, error)
