"""Simulated transactions with the Handbook's columns."""

from datetime import date

import numpy as np
import pandas as pd

from pipeline.simulation.simulator import DEFAULT_START, Scenario, make_profiles, simulate_days


def handbook_frame(days: int, seed: int, start: date = DEFAULT_START) -> pd.DataFrame:
    """A small population, of which enough is compromised to learn from in two days."""
    scenario = Scenario(merchants_per_day=2, merchant_days=5, cards_per_day=1, card_days=5)
    made = simulate_days(make_profiles(np.random.default_rng(seed), 150, 300, scenario), seed, 0, days, start)
    made = made[made["amount_minor"] > 0].reset_index(drop=True)
    return pd.DataFrame(
        {
            "TRANSACTION_ID": made["transaction_id"],
            "TX_DATETIME": made["event_time"].dt.tz_localize(None),
            "CUSTOMER_ID": made["card_id"].str[1:].astype(int),
            "TERMINAL_ID": made["merchant_id"].str[1:].astype(int),
            "TX_AMOUNT": made["amount"],
            "TX_FRAUD": made["fraud"].astype(int),
        }
    )
