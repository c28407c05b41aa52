"""Days of decisions in which the amount begins to be missing, as blocks of ``features``."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np

from pipeline.features.catalogue import KERNEL_VERSION
from schemas.messages import Versions
from tests.helpers.blocks import features_block
from tests.helpers.logs import after, feature_row

ROWS = 120
"""Decisions a day."""


def drifting_blocks(days: range, drifts_from: int, kernel: str = KERNEL_VERSION) -> Iterator[tuple[bytes, datetime]]:
    """Yield the block of each day and its time; from ``drifts_from`` on every third amount is missing."""
    for day in days:
        random = np.random.default_rng(day)
        rows = []
        for number in range(ROWS):
            at = after(day) + timedelta(minutes=10 * number)
            missing = day >= drifts_from and number % 3 == 0
            amount = None if missing else round(float(random.lognormal(3, 1)), 2)
            score = float(random.uniform(0, 0.1))
            versions = Versions(lightgbm="base", river="r@0", policy="p", kernel=kernel, rates="1")
            features = {"amount": amount, "hour": number / 6}
            rows.append(feature_row(ROWS * day + number, at, features=features, score=score, versions=versions))
        yield features_block(rows), after(day, hours=23)
