"""The rate table that goes with a base currency."""

from decimal import Decimal

import pytest

from pipeline.settings import Settings
from pipeline.settings.rate_table import RatesError, load_rates
from schemas.money import UnknownCurrency


def test_another_base_currency_needs_no_table_for_itself() -> None:
    table = load_rates(Settings(base_currency="USD"))
    assert (table.base, table.version) == ("USD", "USD-only")
    assert table.to_base_minor(Decimal("12.50"), "USD") == 1_250
    with pytest.raises(UnknownCurrency, match="No rate for currency 'EUR'; add it to the rate table"):
        table.to_base_minor(Decimal(1), "EUR")


@pytest.mark.parametrize(("currency", "why"), [("JPY", "JPY has no cents"), ("XAU", "set FRAUD_PIPELINE_RATES_FILE")])
def test_a_base_currency_that_windows_cannot_hold_is_refused(currency: str, why: str) -> None:
    with pytest.raises(RatesError, match=why):
        load_rates(Settings(base_currency=currency))
