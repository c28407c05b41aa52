"""The driver of the cards' kernels: live records, replays, backtests and trainings pass it, as columns.

It accepts what is no repeat, lets labels find their transactions and accepted transactions enter the windows, and says
in which order both reach the merchants. Callers say where columns come from and where results go.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.cards.card_join import CardJoin, Following, Joined
from pipeline.engine.cards.joins import COUNTS, DUPLICATE_DIFFERS, NO_TRANSACTION, SAME, Arrivals, Retention
from pipeline.engine.cards.pending import LabelBatch
from pipeline.engine.partition_state.layout import forgotten_with
from pipeline.engine.records.columns import Reject, Transactions, content_keys, digest_keys, name_keys
from pipeline.engine.records.inputs import card_inputs, fill_columns
from pipeline.features.catalogue import CARD_FEATURES
from pipeline.features.kernel import CardProfile, CardWindows
from schemas.records import Record
from schemas.times import US_PER_DAY


class CardKernels(NamedTuple):
    """The kernels of one partition of cards."""

    join: CardJoin
    windows: CardWindows


class CardRows(NamedTuple):
    """n transactions of several partitions with what kernels take besides; those of a partition in log order."""

    transactions: Transactions
    merchants: NDArray[np.int64]
    """Shape (n, 2): `pipeline.engine.records.columns.name_keys`."""
    indexed: NDArray[Any]
    """Merchants in the form in which the index keeps them."""
    position: NDArray[np.int64]
    """Shape (n,): where each stands among all records; ascending within a partition."""
    source: NDArray[np.int64]
    """Shape (n,): a number of each transaction's record, 0 or more, by which a repeat finds it again."""
    feed: NDArray[np.int64]
    """Shape (n,): the partition of ``transactions`` that each was sent to."""


class CardPart(NamedTuple):
    """One partition's share of a batch."""

    kernels: CardKernels
    home: int
    """Number of the partition."""
    rows: slice | NDArray[np.intp]
    """Its transactions among `CardRows`, ascending."""
    labels: LabelBatch
    label_position: NDArray[np.int64]
    """Shape (m,): where each of its labels stands, among the same positions; ascending."""
    records: int
    """Its records, refused ones included: forgetting keeps step with them."""


class CardOutcome(NamedTuple):
    """Outcome of a batch, of which a transactions are accepted; columns of these are in the order of `CardRows`."""

    accepted: NDArray[np.bool_]
    """Shape (n,): which transactions are no repeats."""
    transactions: Transactions
    """The a accepted ones."""
    merchants: NDArray[np.int64]
    """Shape (a, 2)."""
    position: NDArray[np.int64]
    wait_us: NDArray[np.int64]
    """Shape (a,): what the wait clock of each one's partition showed."""
    profile: CardProfile
    contradictions: Sequence[tuple[Reject, int]]
    """Repeats that say something else than the accepted transaction, each with the ``source`` of that one."""
    following: Following
    """Labels that change what is known."""
    given_up: Sequence[tuple[Reject, Record | None]]
    """Labels that have waited in vain, each with its record where labels have records."""
    no_room: Sequence[tuple[Record, str]]
    """Labels that cannot wait, each with the reason."""
    label_outcomes: Counter[str]
    """Number of labels by what became of them."""

    @property
    def duplicates(self) -> int:
        """Number of repeats that say the same."""
        return len(self.accepted) - len(self.transactions) - len(self.contradictions)

    def log_order(self) -> NDArray[np.intp]:
        """Return the order in which transactions, and behind them labels, reach the merchants; shape (a + k,).

        A label stands behind the record that let it follow.
        """
        return np.argsort(np.concatenate([2 * self.position, 2 * self.following.position + 1]), kind="stable")


def process_cards(
    rows: CardRows, parts: Iterable[CardPart], retention: Retention, columns: int = len(CARD_FEATURES)
) -> CardOutcome:
    """Let transactions and labels enter the state of their partitions; what is not committed can be rolled back.

    Args:
        rows: Transactions of all parts.
        parts: One for each partition, each made when its turn comes.
        retention: The retention of this batch.
        columns: Columns of the features to make; those behind the cards' have room for other features.

    Returns:
        What became of them.
    """
    taken = rows.transactions
    digest, content = digest_keys(taken.card_id, taken.transaction_id), content_keys(taken)
    accepted, differs = np.zeros(len(taken), np.bool_), np.full(len(taken), SAME)
    joined: list[tuple[CardPart, Joined]] = []
    for part in parts:
        own = part.rows
        found = part.kernels.join.join(
            retention,
            Arrivals(
                digest[own], taken.event_time_us[own], rows.position[own], content[own], rows.source[own], part.home,
                rows.feed[own], rows.indexed[own], part.labels, part.label_position,
            ),
        )  # fmt: skip
        part.kernels.join.forget(forgotten_with(part.records))
        accepted[own], differs[own] = found.accepted, found.differs
        joined.append((part, found))
    contradictions = [
        (_contradiction(taken, row), int(differs[row])) for row in np.flatnonzero(differs != SAME).tolist()
    ]
    merchants, position = rows.merchants, rows.position
    if not accepted.all():
        taken = taken.take(accepted)
        merchants, position = merchants[accepted], position[accepted]
    wait_us, profile = _windowed(taken, merchants, accepted, joined, columns)
    outcomes = [found for _, found in joined]
    counts = sum((found.counts for found in outcomes), np.zeros(len(COUNTS), np.int64))
    return CardOutcome(
        accepted, taken, merchants, position, wait_us, profile, contradictions,
        _concatenated([found.following for found in outcomes]),
        [label for found in outcomes if len(found.given_up.labels) for label in _given_up(found.given_up, retention)],
        [no_room for found in outcomes for no_room in found.no_room],
        Counter({COUNTS[outcome]: int(counts[outcome]) for outcome in np.flatnonzero(counts).tolist()}),
    )  # fmt: skip


def _windowed(
    taken: Transactions,
    merchants: NDArray[np.int64],
    accepted: NDArray[np.bool_],
    joined: Sequence[tuple[CardPart, Joined]],
    columns: int,
) -> tuple[NDArray[np.int64], CardProfile]:
    """Let the accepted transactions enter the windows of their partitions; return wait clocks and profiles."""
    before = np.concatenate([[0], np.cumsum(accepted)])
    wait_us, whole, inputs = np.empty(len(taken), np.int64), None, card_inputs(taken)
    cards = name_keys(taken.card_id)
    for part, found in joined:
        if isinstance(part.rows, slice):
            first, end, _ = part.rows.indices(len(accepted))
            own: slice | NDArray[np.intp] = slice(before[first], before[end])
        else:
            own = before[part.rows[found.accepted]]
        if not len(found.wait_us):
            continue
        wait_us[own], alone = found.wait_us, len(found.wait_us) == len(taken)
        profile = part.kernels.windows.profile(
            cards[own],
            merchants[own],
            taken.event_time_us[own],
            taken.amount_base_minor[own],
            taken.counts[own],
            taken.hour[own],
            taken.weekday[own],
            None if inputs is None else inputs[own],
            columns if alone else len(CARD_FEATURES),
        )
        if alone:
            fill_columns(taken, profile.features)
            return wait_us, profile
        if whole is None:
            whole = CardProfile.of_rows(len(taken), columns)
        whole.features[own, : profile.features.shape[1]] = profile.features
        whole.case_start_us[own], whole.case_sequence[own] = profile.case_start_us, profile.case_sequence
        whole.outlier[own] = profile.outlier
    if whole is None:
        return wait_us, CardProfile.of_rows(0, columns)
    fill_columns(taken, whole.features)
    return wait_us, whole


def _contradiction(taken: Transactions, row: int) -> Reject:
    text = (
        f"transaction {taken.transaction_id[row].as_py()!r} of card {taken.card_id[row].as_py()!r} was accepted before "
        "with another merchant, event time, amount, currency or type, and that one holds: give each transaction an "
        "identifier of its own"
    )
    return Reject("transaction", int(taken.row[row]), DUPLICATE_DIFFERS, text)


def _given_up(batch: LabelBatch, retention: Retention) -> Iterator[tuple[Reject, Record | None]]:
    labels, records = batch.labels, batch.records
    columns = (labels.transaction_id.to_pylist(), labels.card_id.to_pylist(), labels.row.tolist())
    for number, (transaction_id, card_id, row) in enumerate(zip(*columns, strict=True)):
        text = (
            f"no transaction {transaction_id!r} of card {card_id!r} is known that the label can be joined to: check "
            "both identifiers and send it again, unless the transaction happened more than "
            f"{retention.label_us / US_PER_DAY:g} days before, which is too long"
        )
        reject = Reject("label", row, NO_TRANSACTION, text, int(labels.known_at_us[number]))
        yield reject, records[number] if records else None


def _concatenated(parts: Sequence[Following]) -> Following:
    """Return the labels of several partitions, of one at least."""
    found = [part for part in parts if len(part.position)] or parts[:1]
    if len(found) == 1:
        return found[0]
    position, labels, event_time_us, merchants, known = zip(*found, strict=True)
    return Following(
        np.concatenate(position),
        reduce(add, labels),
        np.concatenate(event_time_us),
        np.concatenate(merchants),
        np.concatenate(known),
    )
