"""Job (a)'s kernel, of the engine's own parts: windows of cards, compiled trees, one vectorised sum for River."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.partition_state.state import LoadedState, StateDump
from pipeline.engine.records.results import Result
from pipeline.features.catalogue import CARD_FEATURES
from pipeline.features.kernel import CardWindows
from pipeline.features.state_columns import Storage
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.compiled_trees import forest_sums
from pipeline.scoring.tree_layout import Forest, lay_out_trees
from pipeline.scoring.trees import read_trees
from schemas.codec import timestamp_us
from schemas.records import Output, Record
from schemas.topics import Topic
from tests.benchmarks.job.definition import INPUTS, MODEL_FILE, RIVER_FILE
from tests.benchmarks.job.windows import Decision, Transaction, inputs_of_batch
from tests.helpers.keys import keys

COUNTS: Final = [CARD_FEATURES.index(f"card_count_{window}") for window in ("1d", "7d", "30d")]
SUMS: Final = [CARD_FEATURES.index(f"card_sum_{window}") for window in ("1d", "7d", "30d")]


class Models:
    """Both models of the job, in the form in which the engine scores."""

    def __init__(self, workdir: Path) -> None:
        forest, _ = lay_out_trees(read_trees((workdir / MODEL_FILE).read_text(encoding="utf-8"), INPUTS))
        if forest is None:
            raise ValueError(f"the trees in {workdir / MODEL_FILE} have more leaves than the compiled sum takes")
        self._forest: Forest = forest
        numbers = json.loads((workdir / RIVER_FILE).read_text(encoding="utf-8"))
        self._intercept: float = numbers["intercept"]
        self._weights = np.array([numbers["weights"][name] for name in INPUTS])

    def probabilities(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(LightGBM's, River's), shape (n,) each, of inputs of shape (n, 30)."""
        river = (rows * self._weights).sum(axis=1) + self._intercept
        return sigmoid(forest_sums(self._forest, rows)), sigmoid(river)


class OneHopPartition:
    """The windows of one partition's cards; a `pipeline.engine.partition_state.state.PartitionState`."""

    def __init__(
        self, models: Models, output: Topic, storage: Storage | None = None, loaded: LoadedState | None = None
    ) -> None:
        """Start empty, or from a dump. Decisions go to ``output``."""
        self._models, self._output = models, output
        self._windows = CardWindows(storage)
        if loaded is not None:
            self._windows.load(loaded.values, loaded.columns)

    def process(self, records: Sequence[Record]) -> Result:
        """One decision for each record, in their order."""
        result = Result()
        batch = [_decode(record.value or b"") for record in records]
        time_us, cents, profile = self._enter(batch)
        rows = inputs_of_batch(batch, time_us // 1_000, cents, profile)
        trees, lines = self._models.probabilities(rows)
        scores, output = (trees + lines) / 2, self._output
        for transaction, score, tree, line, windows in zip(
            batch, scores.tolist(), trees.tolist(), lines.tolist(), profile.tolist(), strict=True
        ):
            decision = Decision(transaction.transaction_id, transaction.card_id, score, tree, line, *windows)
            result.outputs.append(Output(output, transaction.card_id.encode(), _encode(decision)))
        return result

    def replay(self, records: Sequence[Record]) -> None:
        """Let records enter the windows; nothing is decided."""
        self._enter([_decode(record.value or b"") for record in records])

    def commit(self) -> None:
        """The batch is committed."""
        self._windows.commit()

    def rollback(self) -> None:
        """The batch is not committed: take it back."""
        self._windows.rollback()

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the committed state."""
        return StateDump(*self._windows.dump(full=full))

    def close(self) -> None:
        """Let go of the state."""
        self._windows.close()

    def _enter(self, batch: Sequence[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """(event times in us, cents, counts and means of shape (n, 6)); the batch then lies in the windows."""
        n = len(batch)
        time_us = np.fromiter((timestamp_us(item.event_time) for item in batch), np.int64, n)
        cents = np.fromiter((round(100 * transaction.amount) for transaction in batch), np.int64, n)
        # The job has no merchants and takes the hour from the time: what they would give is not among its inputs.
        cards, zeros = keys([transaction.card_id for transaction in batch]), np.zeros(n)
        features = self._windows.profile(cards, cards, time_us, cents, np.ones(n, np.bool_), zeros, zeros).features
        counts = features[:, COUNTS]
        # From whole cents, as the job defines a mean to the last bit.
        means = np.rint(100 * features[:, SUMS]) / np.maximum(100 * counts, 1)
        return time_us, cents, np.concatenate([counts, means], axis=1)


_decode = msgspec.json.Decoder(Transaction).decode
_encode = msgspec.json.Encoder().encode
