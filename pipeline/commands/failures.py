"""Errors that an operator can do something about, as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
from pydantic import ValidationError

from pipeline.demo.place import ClusterNotFound
from pipeline.kafka.clients import ClusterUnreachable, ConfigError, FailedRequest, TopicError, failure_text
from pipeline.kafka.producer import DeliveryFailed
from pipeline.scoring.errors import ModelError

_MENDABLE: Final[tuple[type[Exception], ...]] = (
    *(ClusterNotFound, ClusterUnreachable, ConfigError, DeliveryFailed),
    *(ModelError, TopicError, ValidationError),
)


@contextmanager
def one_sentence(*others: type[Exception]) -> Iterator[None]:
    """Raise `click.ClickException` in place of errors of settings, clusters and models, and of ``others``."""
    mendable = (*_MENDABLE, *others)
    try:
        yield
    except FailedRequest as error:
        raise click.ClickException(failure_text(error)) from error
    except mendable as error:
        raise click.ClickException(str(error)) from error
