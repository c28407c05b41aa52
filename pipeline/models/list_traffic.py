"""How much of a week's traffic has which text of a field: a sample of ``profiled``."""

from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np

from pipeline.engine.encoding.blocks import TRANSACTION
from pipeline.engine.scores.profiled import read_rows
from pipeline.kafka.cluster.log_offsets import readable_range, starts_at
from pipeline.kafka.readers.replay_reader import RangeReader
from pipeline.settings import Settings
from schemas.topics import PROFILED

_WEEK: Final = timedelta(days=7)
_PLACES: Final = 10
"""Places of each partition at which records are read."""
_RECORDS: Final = 20
"""Records, of up to thousands of rows, that are read at each."""


def texts_of_last_week(bootstrap: str, settings: Settings, field: str) -> Counter[str | None]:
    """Count the texts of a field in a sample of the transactions that were accepted within the last seven days.

    Places are spread evenly over the records of each partition; a partition with few is read whole.
    """
    topic, found = settings.topic(PROFILED.name), Counter[str | None]()
    since_ms = round((datetime.now(UTC) - _WEEK).timestamp() * 1_000)
    for number, start in starts_at(bootstrap, topic, since_ms, settings=settings).items():
        end = readable_range(bootstrap, settings, topic, number).stop
        places = (
            [start] if end - start <= _PLACES * _RECORDS else np.linspace(start, end - _RECORDS, _PLACES).astype(int)
        )
        most = (end - start) if len(places) == 1 else _RECORDS
        for first in map(int, places):
            with closing(RangeReader(bootstrap, settings, topic, number, first)) as reader:
                rows = read_rows(reader.read_to(min(first + most, end), max(most, 1)))
            bought = rows.subjects.take(np.flatnonzero(rows.kinds == TRANSACTION))
            found.update(bought.text_lists([field])[field])
    return found
