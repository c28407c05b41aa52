"""Holds an engine's output topic to the reference: an engine that does less work than the others is not listed."""

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.job.windows import Decision

MEAN_TOLERANCE: Final = 1e-9
"""Relative, of means in major units."""
SCORE_TOLERANCE: Final = 1e-6
SILENCE_S: Final = 30.0


class WrongAnswers(AssertionError):
    """An engine's decisions are not those of the job."""


@dataclass(frozen=True)
class Output:
    """What an engine wrote: its decisions, and when the broker appended each (ms, in order)."""

    decisions: pd.DataFrame
    appended_ms: npt.NDArray[np.int64]


def verified(bootstrap: str, topic: str, reference: pd.DataFrame) -> npt.NDArray[np.int64]:
    """When the broker appended each decision of ``topic`` (ms, in order), all being right; else ``WrongAnswers``."""
    output = read_output(bootstrap, topic, len(reference))
    check(output.decisions, reference)
    return output.appended_ms


def read_output(bootstrap: str, topic: str, records: int) -> Output:
    """Read all of ``topic``; ``WrongAnswers`` when it holds another number of records than ``records``."""
    settings = {"bootstrap.servers": bootstrap, "group.id": f"check-{topic}", "enable.auto.commit": False}
    consumer = Consumer({**settings, "isolation.level": "read_committed", "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    decoder, unread = msgspec.json.Decoder(Decision), set(range(PARTITIONS))
    rows: list[Decision] = []
    times: list[int] = []
    while unread:
        first = consumer.poll(SILENCE_S)
        if first is None:
            raise WrongAnswers(f"{topic} could not be read to its end within {SILENCE_S:.0f} s")
        # `consume` alone would wait for as many as it is asked for, and so for the whole time at the topic's end.
        for message in (first, *consumer.consume(5_000, 0)):
            error = message.error()
            if error is None:
                rows.append(decoder.decode(message.value()))
                times.append(message.timestamp()[1])
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard(message.partition())
            else:
                raise KafkaException(error)
    consumer.close()
    if len(rows) != records:
        raise WrongAnswers(f"{topic} holds {len(rows)} decisions for {records} transactions")
    columns = {name: [getattr(row, name) for row in rows] for name in Decision.__struct_fields__}
    return Output(pd.DataFrame(columns).set_index("transaction_id"), np.sort(np.array(times, np.int64)))


def check(decisions: pd.DataFrame, reference: pd.DataFrame) -> None:
    """Compare all decisions with the reference, both indexed by transaction. ``WrongAnswers`` names the first fault."""
    if not decisions.index.is_unique:
        raise WrongAnswers(f"decided twice: {decisions.index[decisions.index.duplicated()][0]}")
    missing = reference.index.difference(decisions.index)
    if len(missing) or len(decisions) != len(reference):
        raise WrongAnswers(f"{len(missing)} transactions have no decision, the first is {missing[:1].tolist()}")
    found = decisions.loc[reference.index]
    for name in reference.columns:
        want, got = reference[name], found[name]
        if name == "card_id" or name.startswith("count"):
            wrong = (want != got).to_numpy()
        elif name.startswith("mean"):
            wrong = (got - want).abs().to_numpy() > MEAN_TOLERANCE * want.abs().to_numpy()
        else:
            wrong = ~((got - want).abs().to_numpy() <= SCORE_TOLERANCE)
        if wrong.any():
            first = reference.index[int(np.argmax(wrong))]
            raise WrongAnswers(
                f"{name} differs in {int(wrong.sum())} of {len(reference)} decisions; {first} has {got[first]}, "
                f"the reference {want[first]}"
            )
