"""The options of the card kernel, live and in backtests."""

from typing import NamedTuple, Self

from pipeline.engine.cards.joins import Retention
from schemas.mapping import FieldMapping, Mapper
from schemas.messages import CardConfig
from schemas.money import RateTable


class CardOptions(NamedTuple):
    """The options of the card kernel."""

    rates: RateTable
    future_tolerance_us: int
    deduplication_us: int
    label_grace_us: int
    partitions: int
    """Number of partitions of ``transactions``, and so of ``accepted-labels`` and ``rerouted``."""
    topic_prefix: str = ""
    merchant_partitions: int = 1
    """Number of partitions of ``profiled``."""
    dropped_fields: frozenset[str] = frozenset()
    """Fields that the bytes of a transaction lose on their way to ``profiled``."""
    mapper: Mapper | None = None
    """Maps the producers' own JSON; None: they write the contract's."""

    @property
    def config(self) -> CardConfig:
        """Return the processing config: the options that decide how a record is processed, live and in a replay."""
        return CardConfig(
            rates_version=self.rates.version,
            rates_digest=self.rates.digest,
            future_tolerance_us=self.future_tolerance_us,
            dedup_horizon_us=self.deduplication_us,
            label_horizon_us=self.label_grace_us,
            mapping_version="" if self.mapper is None else self.mapper.mapping.version,
            mapping_digest="" if self.mapper is None else self.mapper.mapping.digest,
        )

    @property
    def retention(self) -> Retention:
        """Return for how long transactions are remembered."""
        return Retention(self.deduplication_us, self.label_grace_us)

    def under(self, config: CardConfig, rates: RateTable, mapping: FieldMapping | None) -> Self:
        """Return the options under another processing config, whose files are ``rates`` and ``mapping``."""
        return self._replace(
            rates=rates,
            mapper=None if mapping is None else Mapper(mapping, rates),
            future_tolerance_us=config.future_tolerance_us,
            deduplication_us=config.dedup_horizon_us,
            label_grace_us=config.label_horizon_us,
        )
