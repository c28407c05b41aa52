"""The rate table that the settings name."""

from importlib import resources

from pipeline.settings import Settings
from schemas.money import RateTable, load


class RatesError(ValueError):
    """The rate table does not fit the settings."""


def load_rates(settings: Settings) -> RateTable:
    """The table of ``rates_file``, or the indicative one of the package; its base must be the base currency."""
    source = settings.rates_file
    content = (
        source.read_bytes() if source is not None else (resources.files("pipeline") / "data/rates.json").read_bytes()
    )
    table = load(content)
    if table.base != settings.base_currency:
        raise RatesError(
            f"the rate table {source or 'of the package'} converts to {table.base}, the base currency is "
            f"{settings.base_currency}: set FRAUD_PIPELINE_RATES_FILE or FRAUD_PIPELINE_BASE_CURRENCY to match"
        )
    if table.base_scale != 100:
        raise RatesError(f"{table.base} has no cents: choose a base currency with two decimals for the windows")
    return table
