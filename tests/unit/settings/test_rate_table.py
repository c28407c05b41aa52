"""The rate table that goes with a base currency."""

import pytest

from pipeline.settings import Settings
from pipeline.settings.rate_table import RatesError, load_rates


def test_another_base_currency_needs_no_table_for_itself() -> None:
    table = load_rates(Settings(base_currency="USD"))
    assert (table.base, table.version) == ("USD", "USD-only")
    assert table.currencies["USD"].to_base_minor(1_250) == 1_250
    assert list(table.currencies) == ["USD"]


@pytest.mark.parametrize(("currency", "why"), [("JPY", "JPY has no cents"), ("XAU", "set FRAUD_PIPELINE_RATES_FILE")])
def test_a_base_currency_that_windows_cannot_hold_is_refused(currency: str, why: str) -> None:
    with pytest.raises(RatesError, match=why):
        load_rates(Settings(base_currency=currency))
