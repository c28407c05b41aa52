"""Quix Streams with the one place that it offers for work on batches: a sink of one's own.

``quix.py`` up to the profile; then a ``BatchingSink`` scores each checkpoint's records together and produces the
decisions. A checkpoint is committed after the sink has confirmed them, so that the guarantee stays at-least-once.
"""

from typing import Any

import numpy as np
import orjson
import pandas as pd
from confluent_kafka import Producer
from quixstreams.sinks import BatchingSink, SinkBatch

from tests.benchmarks.job.definition import INPUTS, load_lightgbm, load_river
from tests.benchmarks.peers.arguments import Arguments, arguments
from tests.benchmarks.peers.quix import application, decision_of, profiled, row_of

CHUNK = 1_000
COMMIT_EVERY = 10_000
"""Messages between checkpoints: after 5 seconds, the default, decisions would be as late as that."""


class Decisions(BatchingSink):
    """Scores records in chunks and writes one decision for each."""

    def __init__(self, options: Arguments) -> None:
        super().__init__()
        self._topic = options.output
        self._booster, self._river = load_lightgbm(options.workdir), load_river(options.workdir)
        self._producer = Producer(
            {
                "bootstrap.servers": options.bootstrap_servers,
                "partitioner": "murmur2",
                "enable.idempotence": True,
            }
        )
        self._failures: list[object] = []

    def _delivered(self, error: object, _message: object) -> None:
        if error is not None:
            self._failures.append(error)

    def write(self, batch: SinkBatch) -> None:
        """Score and produce the records of one partition; they are delivered when this returns."""
        for chunk in batch.iter_chunks(CHUNK):
            items: list[Any] = list(chunk)
            rows = np.array([row_of(item.value) for item in items])
            trees = self._booster.predict(rows)
            logistic = self._river.predict_proba_many(pd.DataFrame(rows, columns=INPUTS))[True]
            for item, tree, line in zip(items, trees.tolist(), logistic.tolist(), strict=True):
                value = orjson.dumps(decision_of(item.value, tree, line))
                self._producer.produce(self._topic, value, item.key, on_delivery=self._delivered)
            self._producer.poll(0)
        if self._producer.flush(60) or self._failures:
            raise RuntimeError(f"decisions were not delivered: {self._failures[:1]}")


def main(options: Arguments) -> None:
    """Profile, and sink."""
    app = application(options, COMMIT_EVERY)
    sdf = app.dataframe(app.topic(options.input, value_deserializer="json"))
    sdf = sdf.apply(profiled, stateful=True)
    sdf.sink(Decisions(options))
    app.run()


if __name__ == "__main__":
    main(arguments())
