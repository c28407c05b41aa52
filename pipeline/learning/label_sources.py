"""The sources that a label may claim: Kafka does not record who wrote a record, so that its topic has to."""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from schemas.errors import InvalidMessage
from schemas.topics import LABELS

ANY_SOURCE: Final = "*"
SIMULATOR: Final = "simulator"
NOT_ALLOWED: Final = "source_not_allowed"
"""Code of a label whose source is not one that its topic speaks for."""


class LabelSources(NamedTuple):
    """Rule by which the topic of a label speaks for its source."""

    topics: Mapping[str, frozenset[str]]
    """Sources by name of the topic, without prefix; `ANY_SOURCE` among them allows every source."""
    simulated: bool
    """True if the clock of the topics is simulated: only then does a simulator know anything."""

    def check(self, topic: str, source: str) -> None:
        """Raise `InvalidMessage` where a label on ``topic`` (without prefix) may not claim ``source``.

        >>> LabelSources({"labels": frozenset({"analyst"})}, simulated=False).check("labels", "analyst")
        """
        if not self._speaks(topic, source):
            names = ", ".join(sorted(self.topics.get(topic, ()))) or "no source"
            raise InvalidMessage(
                NOT_ALLOWED,
                f"source is {source!r}, but topic {topic} speaks for {names} (FRAUD_PIPELINE_LABEL_TOPICS); write the "
                f"label to a topic of its source{_named(self.speaking_for(source))}.",
            )
        if source == SIMULATOR and not self.simulated:
            raise InvalidMessage(
                NOT_ALLOWED,
                f"source is {SIMULATOR!r}, and these topics have no simulated clock (FRAUD_PIPELINE_TIMESTAMPS is not "
                "producer); name who established the label.",
            )

    def _speaks(self, topic: str, source: str) -> bool:
        return bool(self.topics.get(topic, frozenset()) & {source, ANY_SOURCE})

    def allows(self, topic: str, source: str) -> bool:
        """Return whether a label on ``topic`` (without prefix) may claim ``source``."""
        return self._speaks(topic, source) and (self.simulated or source != SIMULATOR)

    def speaking_for(self, source: str) -> list[str]:
        """Return the topics on which a label may claim ``source``, without prefix; those that name it come first."""
        allowed = [topic for topic in self.topics if self.allows(topic, source)]
        return sorted(allowed, key=lambda topic: source not in self.topics[topic])

    def topic_for(self, source: str) -> str:
        """Return the topic, without prefix, for labels that claim ``source``.

        Raises:
            InvalidMessage: No topic speaks for it.
        """
        for topic in self.speaking_for(source):
            return topic
        for topic in self.topics:
            self.check(topic, source)
        raise InvalidMessage(NOT_ALLOWED, "there is no topic of labels; name one in FRAUD_PIPELINE_LABEL_TOPICS.")


EVERY_SOURCE: Final = LabelSources({LABELS.name: frozenset({ANY_SOURCE})}, simulated=True)
"""The one topic ``labels`` speaks for every source."""


def _named(topics: Iterable[str]) -> str:
    text = ", ".join(topics)
    return f": {text}" if text else ""
