"""Options of the kernels, made from the settings: the same for live agents and backtests."""

from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.records.accepted_labels import LabelOptions
from pipeline.settings import Settings
from schemas.mapping import FieldMapping, Mapper
from schemas.messages import FeedbackConfig
from schemas.money import RateTable
from schemas.times import US_PER_DAY, US_PER_SECOND


def label_options(settings: Settings) -> LabelOptions:
    """Return the options of the label kernel."""
    return LabelOptions(
        round(settings.future_tolerance_s * US_PER_SECOND),
        settings.card_partitions,
        settings.label_sources,
        settings.topic_prefix,
    )


def card_options(
    settings: Settings, rates: RateTable, partitions: int, topic_prefix: str = "", mapping: FieldMapping | None = None
) -> CardOptions:
    """Return the options of the card kernel.

    Args:
        settings: Settings of the worker or backtest.
        rates: Table that converts to the base currency.
        partitions: Number of partitions of ``transactions``.
        topic_prefix: Prefix of the names of the topics that are read.
        mapping: Mapping of the producers' own JSON; None: they write the contract's.
    """
    return CardOptions(
        rates=rates,
        future_tolerance_us=round(settings.future_tolerance_s * US_PER_SECOND),
        deduplication_us=round(settings.deduplication_days * US_PER_DAY),
        label_grace_us=round(settings.label_grace_days * US_PER_DAY),
        partitions=partitions,
        topic_prefix=topic_prefix,
        merchant_partitions=settings.merchant_partitions,
        dropped_fields=settings.dropped_names,
        mapper=None if mapping is None else Mapper(mapping, rates),
    )


def feedback_config(settings: Settings) -> FeedbackConfig:
    """Return the processing config of the feedback kernel."""
    return FeedbackConfig(
        label_horizon_us=round(settings.label_grace_days * US_PER_DAY),
        maturity_us=round(settings.maturity_days * US_PER_DAY),
        negative_sample_rate=settings.negative_sample_rate,
        reported_share=settings.reported_share,
    )
