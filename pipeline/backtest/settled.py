"""What recorded labels say in the end about transactions, for backtests that let it become known at other times."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.backtest.columns import Transactions, digest_keys
from pipeline.backtest.resolved import KNOWN
from pipeline.backtest.sources import LabelBook
from pipeline.backtest.truth import held_labels
from pipeline.learning.labels import NOTHING

_NOTHING = KNOWN.index(NOTHING)


class SettledLabels:
    """The label that holds of each transaction, of all that were ever told."""

    def __init__(self, labels: pd.DataFrame) -> None:
        """``labels`` as of `LabelBook.whole`."""
        held = held_labels(labels)
        held = held[held["known"] != _NOTHING]
        names = (pa.array(held[name], pa.string()) for name in ("card_id", "transaction_id"))
        digests = digest_keys(*names)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        self._digests = digests[order]
        self._held: pd.DataFrame = held.iloc[order].reset_index(drop=True)

    def __len__(self) -> int:
        return len(self._held)

    def told(self, parts: Iterator[Transactions], delay_us: int, book: LabelBook) -> Iterator[Transactions]:
        """The transactions with their truth, which ``book`` is told to be known ``delay_us`` after each."""
        for part in parts:
            at = self._found(part)
            truth = np.full(len(part), _NOTHING, np.int8)
            known = at >= 0
            held = self._held.iloc[at[known]]
            truth[known] = held["known"].to_numpy(np.int8)
            rows = replace(part, truth=truth)
            sources, fraud_types = (
                pa.array(held[name].astype(object), pa.string()) for name in ("source", "fraud_type")
            )
            book.add_truth(rows.take(known), delay_us, sources, fraud_types)
            yield rows

    def _found(self, part: Transactions) -> np.ndarray:
        """Which label is of each transaction, -1 for none; shape (n,)."""
        if not len(self):
            return np.full(len(part), -1)
        wanted = digest_keys(part.card_id, part.transaction_id)
        # Of 128 bits the first 64 do not occur twice; the others tell whether it is the one.
        at = np.searchsorted(self._digests[:, 0], wanted[:, 0]).clip(max=len(self) - 1)
        return np.where((self._digests[at] == wanted).all(axis=1), at, -1)
