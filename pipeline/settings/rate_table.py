"""The rate table that the settings name."""

from importlib import resources

import msgspec

from pipeline.settings import Settings
from schemas.money import RateTable, load


class RatesError(ValueError):
    """A rate table that may not be used, or that is missing; the text says what to do."""


def read_rates(settings: Settings) -> bytes:
    """Return the content of ``rates_file``, or of the package's indicative table into the base currency."""
    if settings.rates_file is not None:
        return settings.rates_file.read_bytes()
    content = (resources.files("pipeline") / "data/rates.json").read_bytes()
    table = load(content)
    own = table.currencies.get(settings.base_currency)
    if own is None or settings.base_currency == table.base:
        return content
    # Indicative rates into another currency would be made up twice: this one is converted to itself alone.
    alone = {settings.base_currency: {"digits": own.digits, "rate": "1"}}
    return msgspec.json.encode(
        {"version": f"{settings.base_currency}-only", "base": settings.base_currency, "currencies": alone}
    )


def load_rates(settings: Settings) -> RateTable:
    """Return the table of `read_rates`; its base must be the base currency."""
    return fitting(read_rates(settings), settings)


def fitting(content: bytes, settings: Settings) -> RateTable:
    """The table of a file's ``content``; raises `RatesError` unless its base is the base currency of the windows."""
    table = load(content)
    if table.base != settings.base_currency:
        raise RatesError(
            f"the rate table {settings.rates_file or 'of the package'} converts to {table.base}, the base currency is "
            f"{settings.base_currency}: set FRAUD_PIPELINE_RATES_FILE or FRAUD_PIPELINE_BASE_CURRENCY to match"
        )
    if table.base_scale != 100:
        raise RatesError(f"{table.base} has no cents: choose a base currency with two decimals for the windows")
    return table
