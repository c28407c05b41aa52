"""An audit whose rates keep within a budget."""

from typing import Final

import numpy as np

from pipeline.decision.audit_sample import Audit, Stratum
from pipeline.features.catalogue import FEATURES
from pipeline.training.cohorts import Split, TrainingSet
from schemas.times import US_PER_DAY

_SURGE: Final = "merchant_surge"
_AGE: Final = "merchant_seconds_since_first"
AUDIT_FEATURES: Final = tuple(name for name in (_SURGE, _AGE) if name in FEATURES)
"""Features that strata go by, of those that are declared."""
_SURGE_QUANTILE: Final = 0.99
_NEW_S: Final = 14 * 86_400.0
"""A merchant is new for so long."""


def audit_within_budget(data: TrainingSet, split: Split, audits_per_day: float) -> Audit:
    """Return an audit that would have selected a number of transactions a day in the validation period.

    Half of them come from all transactions alike. A quarter each comes from merchants with more traffic than 99 % of
    the transactions' have, and from merchants that are seen for less than 14 days; what such a stratum cannot use goes
    to nobody.

    Args:
        data: Transactions.
        split: Of which the validation period counts.
        audits_per_day: Number to select.
    """
    weight = data.weight[split.validation]
    days = split.validation_us / US_PER_DAY
    rate = min(audits_per_day / 2 * days / float(weight.sum()), 1.0)
    columns = {name: data.column(name)[split.validation] for name in AUDIT_FEATURES}
    strata = []
    if _SURGE in columns and (known := ~np.isnan(surge := columns[_SURGE])).any():
        above = float(np.quantile(surge[known], _SURGE_QUANTILE, weights=weight[known], method="inverted_cdf"))
        strata.append((_SURGE, ">", above, surge > above))
    if _AGE in columns:
        strata.append((_AGE, "<", _NEW_S, columns[_AGE] < _NEW_S))
    return Audit(
        rate=rate,
        strata=tuple(
            Stratum(feature=name, op=op, value=value, rate=min(rate + audits_per_day / 4 * days / rows, 1.0))
            for name, op, value, inside in strata
            if (rows := float(weight[inside].sum())) > 0
        ),
    )
