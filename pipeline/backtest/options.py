"""The card kernel's options, as the settings say."""

from pipeline.engine.card import CardOptions
from pipeline.features.catalogue import US_PER_DAY, US_PER_SECOND
from pipeline.rates import load_rates
from pipeline.settings import Settings


def card_options(settings: Settings, partitions: int) -> CardOptions:
    """Those of ``partitions`` partitions, on topics without a prefix. Raises `pipeline.rates.RatesError`."""
    return CardOptions(
        rates=load_rates(settings),
        future_tolerance_us=round(settings.future_tolerance_s * US_PER_SECOND),
        dedup_horizon_us=round(settings.dedup_horizon_days * US_PER_DAY),
        label_horizon_us=round(settings.label_horizon_days * US_PER_DAY),
        partitions=partitions,
    )
