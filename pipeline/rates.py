"""The rate table that the settings name."""

from importlib import resources

from schemas.money import RateTable, load_rate_table

from pipeline.settings import Settings


class RatesError(ValueError):
    """The rate table does not fit the settings."""


def load_rates(settings: Settings) -> RateTable:
    """The table of ``rates_file``, or the indicative one of the package; its base must be the base currency."""
    source = settings.rates_file
    content = (
        source.read_bytes() if source is not None else (resources.files("pipeline") / "data/rates.json").read_bytes()
    )
    table = load_rate_table(content)
    if table.base_currency != settings.base_currency:
        raise RatesError(
            f"the rate table {source or 'of the package'} converts to {table.base_currency}, the base currency is "
            f"{settings.base_currency}: set FRAUD_PIPELINE_RATES_FILE or FRAUD_PIPELINE_BASE_CURRENCY to match"
        )
    return table
