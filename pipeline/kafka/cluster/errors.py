"""The errors that Kafka clients, topics and sessions raise, for the commands and the agents that report them."""

from typing import Final, TypeAlias

from confluent_kafka import KafkaError, KafkaException


class TopicError(RuntimeError):
    """A topic is missing or not what it must be; the text says what to do."""


class ClusterUnreachable(RuntimeError):
    """No broker answers; the text says what to check."""


FailedRequest: TypeAlias = KafkaException
"""Raised by the client where brokers refuse a request, or do not answer in time."""


RIGHTS: Final = "`fraud-pipeline acl` shows the rights of each role"
_DENIED: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)


def failure_text(error: FailedRequest) -> str:
    """Return a failed request as a sentence for people."""
    cause: KafkaError = error.args[0]
    return _sentence(cause.str(), denied=cause.code() in _DENIED)


def ending_text(words: str) -> str:
    """Return what ended a client, in its own ``words``, as a sentence for people."""
    return _sentence(words, denied=any(KafkaError(code).str() in words for code in _DENIED))


def _sentence(cause: str, *, denied: bool) -> str:
    advice = f"this user lacks a right: {RIGHTS}" if denied else "see whether the brokers are well"
    return f"Kafka: {cause}; {advice}"


class ConfigError(ValueError):
    """``settings.kafka_config`` contradicts what the pipeline relies on."""


class SessionError(RuntimeError):
    """The session cannot go on; the worker must end, and nothing of the current batch is committed."""


class Stopped(SessionError):
    """The worker ends, and what it waited for has not come."""


class Aborted(Exception):
    """Nothing of the batch is committed; its state was taken back, and it is read again."""


class OutputTooLarge(Exception):
    """A record to be written is larger than this client or its topic takes; nothing of the batch is committed.

    Unlike an abort, this is the fault of what was read: the same records would fail for ever.
    """


class Unknown(Exception):
    """A transaction ended without word of how; a new producer has ended it, the committed offsets show the rest."""
