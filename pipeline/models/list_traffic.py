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
_SAMPLES: Final = 10
"""Parts of each partition of which records are read."""
_RECORDS: Final = 20
"""Records, of up to thousands of rows, that are read at each."""


def texts_of_last_week(bootstrap: str, settings: Settings, field: str) -> Counter[str | None]:
    """Count the texts of a field in a sample of the transactions that were accepted within the last seven days.

    The parts are spread evenly over the records of each partition; a partition with few is read whole.
    """
    topic, found = settings.topic(PROFILED.name), Counter[str | None]()
    since_ms = round((datetime.now(UTC) - _WEEK).timestamp() * 1_000)
    for number, start in starts_at(bootstrap, topic, since_ms, settings=settings).items():
        end = readable_range(bootstrap, settings, topic, number).stop
        is_whole = end - start <= _SAMPLES * _RECORDS
        firsts = [start] if is_whole else np.linspace(start, end - _RECORDS, _SAMPLES).astype(int).tolist()
        for first in firsts:
            with closing(RangeReader(bootstrap, settings, topic, number, first)) as reader:
                rows = read_rows(reader.read_to(end if is_whole else first + _RECORDS))
            bought = rows.subjects.take(np.flatnonzero(rows.kinds == TRANSACTION))
            found.update(bought.text_lists([field])[field])
    return found
