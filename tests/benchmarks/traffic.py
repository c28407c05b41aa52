"""Simulated transactions and their labels, encoded beforehand, so that a measured run does not pay for making them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import pandas as pd

from pipeline.demo.world import World
from pipeline.replay.messages import ENCODER, event_times_us, transaction_messages
from schemas.messages import Label

LABELLED = 0.01
"""Share of transactions that get a label."""
LABEL_BEHIND_ROWS = 2_000
"""A label follows its transaction behind so many others."""


class Item(NamedTuple):
    """A record to be sent: ``number`` counts transactions from 0; a label has its transaction's."""

    topic: Literal["transactions", "labels"]
    number: int
    key: bytes
    value: bytes


class _Prepared(msgspec.Struct, array_like=True):
    is_label: bool
    number: int
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Traffic:
    """A population whose days are streamed one after the other; what it gives depends on its fields alone.

    With ``cards`` 10,000 and more it makes about 1.9 transactions a card and day.
    """

    cards: int = 10_000
    merchants: int = 5_000
    seed: int = 1
    history_days: int = 31
    """Days before the first measured transaction, which fill the windows; 30 is the longest window and maturity."""

    def history(self, ends: date) -> pd.DataFrame:
        """The days before ``ends``, in event-time order; the first measured transactions follow at midnight."""
        world = self._world(ends)
        frames = list(world.days(0, self.history_days))
        return pd.concat(frames, ignore_index=True) if frames else world.days(0, 1).__next__().iloc[:0]

    def measured(self, starts: date, rows: int) -> pd.DataFrame:
        """The first ``rows`` transactions from ``starts`` on."""
        frames, found = [], 0
        for frame in self._world(starts).days(self.history_days, None):
            frames.append(frame.head(rows - found))
            found += len(frames[-1])
            if found >= rows:
                break
        return pd.concat(frames, ignore_index=True)

    def _world(self, first_measured: date) -> World:
        return World(
            cards=self.cards,
            merchants=self.merchants,
            seed=self.seed,
            history_days=self.history_days,
            start=first_measured - timedelta(days=self.history_days),
        )


def items(frame: pd.DataFrame, seed: int, *, labelled: float = LABELLED, first_number: int = 0) -> Iterator[Item]:
    """The rows of ``frame`` as records, and labels (the truth) of a share of them behind later rows.

    What stands at the end of the frame stays without a label.
    """
    times_us = event_times_us(frame)
    fraud = frame["fraud"].tolist()
    chosen = np.random.default_rng((seed, 11)).random(len(frame)) < labelled
    waiting: dict[int, Item] = {}
    for row, message in enumerate(transaction_messages(frame, times_us)):
        key = message.card_id.encode()
        if chosen[row]:
            label = Label(
                transaction_id=message.transaction_id,
                card_id=message.card_id,
                label="fraud" if fraud[row] else "legitimate",
                source="analyst",
                labelled_at=message.event_time + timedelta(hours=2),
            )
            waiting[row + LABEL_BEHIND_ROWS] = Item("labels", first_number + row, key, ENCODER.encode(label))
        yield Item("transactions", first_number + row, key, ENCODER.encode(message))
        if (due := waiting.pop(row, None)) is not None:
            yield due


def write_items(path: Path, prepared: list[Item]) -> None:
    """Keep records in a file for another process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        msgspec.msgpack.encode(
            [(record.topic == "labels", record.number, record.key, record.value) for record in prepared]
        )
    )


def read_items(path: Path) -> list[Item]:
    """What `write_items` kept."""
    return [
        Item("labels" if byte.is_label else "transactions", byte.number, byte.key, byte.value)
        for byte in msgspec.msgpack.decode(path.read_bytes(), type=list[_Prepared])
    ]


def a_while_ago(days: int) -> date:
    """The day ``days`` days before today (UTC), so that event times are in the past of the broker's clock."""
    return (datetime.now(UTC) - timedelta(days=days)).date()
