"""A random declaration over a random history: ``python -m tests.helpers.declared_windows SEED TABLES ROWS``.

Its features are computed live in memory, by a backtest of a file, by a training of a file, and by the reference, which
shares no code with them. Prints as a JSON object how many values were compared, and what differs.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.helpers.declarations import (
    DAY,
    OWN_NUMBERS,
    OWN_TEXTS,
    SECOND,
    as_toml,
    random_declaration,
    random_history,
)

OPTIONAL: Final = ("transaction_type", "local_time", "country", "channel", "mcc", "device_id", "account_id", "ip")
MOST_SHOWN: Final = 5
LARGEST_BATCH: Final = 400


class Difference:
    """Values that were compared, and those that differ."""

    def __init__(self) -> None:
        self.compared: dict[str, int] = {}
        self.different = 0
        self.shown: list[list[Any]] = []

    def compare(
        self, what: str, names: tuple[str, ...], got: NDArray[np.float64], want: NDArray[np.float64], allowed: Any = 0.0
    ) -> None:
        """Compare two matrices of the same columns, bit by bit but for what is ``allowed``; a NaN equals any other."""
        assert got.shape == want.shape, f"{what}: {got.shape} and {want.shape}"
        with np.errstate(invalid="ignore"):
            equal = (np.isnan(got) & np.isnan(want)) | (np.abs(got - want) <= allowed)
        # Infinities too.
        equal |= got == want
        self.compared[what] = self.compared.get(what, 0) + got.size
        self.different += int(np.count_nonzero(~equal))
        for row, column in np.argwhere(~equal)[: MOST_SHOWN if len(self.shown) < 4 * MOST_SHOWN else 0].tolist():
            self.shown.append([what, names[column], row, repr(got[row, column]), repr(want[row, column])])


def main() -> None:
    """Declare, compute in all ways, and report."""
    seed, tables, rows = map(int, sys.argv[1:4])
    declaration = random_declaration(seed, tables)
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(as_toml(declaration))
        file.flush()
        os.environ["FRAUD_PIPELINE_FEATURES_FILE"] = file.name
        import pipeline  # noqa: F401 (which declares them)
    from pipeline.features.catalogue import ACTIVE, FEATURES

    history = random_history(seed, rows, declaration)
    partitions = seed % 3 + 1
    with tempfile.TemporaryDirectory() as name:
        found = compared(Path(name), declaration, history, partitions, np.random.default_rng([seed, 2]))
    reported = {
        "seed": seed,
        "partitions": partitions,
        "features": len(FEATURES),
        "declared": len(ACTIVE.window_features),
        "inputs": [len(ACTIVE.card_inputs), len(ACTIVE.merchant_inputs)],
        "compared": found.compared,
        "different": found.different,
        "differences": found.shown,
    }
    json.dump(reported, sys.stdout)


def compared(
    directory: Path, declaration: dict[str, Any], history: pd.DataFrame, partitions: int, random: np.random.Generator
) -> Difference:
    """Compute the features of a history in all ways; return what differs."""
    from pipeline.features.catalogue import FEATURES
    from tests.reference.declared import declared_features, tolerances

    found = Difference()
    batches = in_batches(history, partitions, random)
    log = pd.concat([batch for _, batch in batches])
    log = log[log["kind"] == "transaction"].drop(columns="kind")
    live = live_features(batches, partitions)
    numbered = log.assign(timestamp=pd.to_datetime(log["arrived_us"], unit="us", utc=True))
    labels = pd.concat([batch for _, batch in batches])
    labels = labels[labels["kind"] == "label"]
    suffix = ".csv" if random.random() < 0.5 else ".parquet"
    replayed = replayed_features(written(numbered, directory / "recorded.parquet"), label_table(labels), partitions)
    found.compare("live and a backtest", FEATURES, live, replayed)

    def against_reference(what: str, got: NDArray[np.float64], rows: pd.DataFrame, partitions: int) -> None:
        frame = reference_frame(rows, partitions)
        want = declared_features(declaration, frame)
        allowed = tolerances(declaration, want, frame)
        want = want.assign(**{f"attribute_{name}": frame[name] for name in OWN_NUMBERS})
        names = tuple(name for name in FEATURES if name in want)
        columns = [FEATURES.index(name) for name in names]
        limits = np.column_stack([np.broadcast_to(allowed.get(name, 0.0), len(want)) for name in names])
        found.compare(what, names, got[:, columns], want[[*names]].to_numpy(np.float64), limits)

    against_reference("a backtest and the reference", replayed, log, partitions)
    if suffix == ".csv":
        # It cannot tell an empty text from none.
        history = history.assign(**{name: history[name].replace("", None) for name in (*OPTIONAL, *OWN_TEXTS)})
    in_time = history.sort_values("event_time_us", kind="stable")
    trained = trained_features(written(history, directory / f"history{suffix}"), directory)
    against_reference("a training and the reference", trained, in_time, 1)
    return found


def in_batches(history: pd.DataFrame, partitions: int, random: np.random.Generator) -> list[tuple[int, pd.DataFrame]]:
    """Return the log as uneven batches, each of one partition, of transactions and labels (column ``kind``).

    ``sequence`` is the number of the batch: in one, transactions come first. A label arrives days behind its
    transaction.
    """
    from pipeline.engine.records.partitioner import partition_of

    labelled = history[history["fraud"] | (np.arange(len(history)) % 20 == 0)]
    delay = random.integers(0, 20 * DAY, len(labelled))
    arrived = labelled["arrived_us"] + delay // SECOND * SECOND
    log = pd.concat([history.assign(kind="transaction"), labelled.assign(kind="label", arrived_us=arrived)])
    log = log.sort_values("arrived_us", kind="stable", ignore_index=True)
    partition = np.array([partition_of(card, partitions) for card in log["card_id"]])
    batches, first = [], 0
    while first < len(log):
        end = first + int(np.exp(random.uniform(0, np.log(LARGEST_BATCH))))
        part = log.iloc[first:end]
        of_part = partition[first:end]
        batches += [(number, part[of_part == number]) for number in np.unique(of_part).tolist()]
        first = end
    return [(number, batch.assign(sequence=count)) for count, (number, batch) in enumerate(batches)]


def message(row: Mapping[Any, Any], *, odd: bool = False) -> dict[str, Any]:
    """Return a row as its producer writes it; ``odd``: with values of other kinds, which stand for the same."""
    from tests.helpers.live import moment

    row = {name: None if pd.isna(value) else value for name, value in row.items()}
    fields = {name: row[name] for name in ("transaction_id", "card_id", "merchant_id", "currency", *OPTIONAL)}
    attributes = {name: row[name] for name in (*OWN_TEXTS, *OWN_NUMBERS) if row[name] is not None}
    if odd:
        fields["mcc"] = None if row["mcc"] is None else int(row["mcc"])
        attributes |= {name: None for name in (*OWN_TEXTS, *OWN_NUMBERS) if name not in attributes}
        # A number is no text, and a text no number.
        attributes |= {name: 5 for name in OWN_TEXTS if attributes[name] is None}
        attributes |= {name: "5" for name in OWN_NUMBERS if attributes[name] is None}
        attributes["more"] = "x"
    return {
        **fields, "amount": row["amount"], "event_time": moment(row["event_time_us"]).isoformat(),
        "attributes": attributes or None,
    }  # fmt: skip


def live_features(batches: list[tuple[int, pd.DataFrame]], partitions: int) -> NDArray[np.float64]:
    """Return the features of the transactions of a log, in its order, as workers decide them."""
    from pipeline.features.catalogue import FEATURES
    from schemas.topics import LABELS, TRANSACTIONS
    from tests.helpers.live import NOW, Live, moment

    class Batched(Live):
        def part(self, partition: int, happened: list[tuple[str, dict[str, Any], int]]) -> None:
            records = []
            for topic, fields, at_us in happened:
                record = self._record(topic, fields, at_us)
                records += self._accepted(record) if topic == LABELS.name else [record]
            self._hop(self._cards[partition].process(records, NOW), partition)

    live, order = Batched(models(), options(partitions)), []
    for partition, batch in batches:
        happened: list[tuple[str, dict[str, Any], int]] = []
        for row in batch.to_dict("records"):
            if row["kind"] == "label":
                said = {"label": "fraud" if row["fraud"] else "legitimate", "source": "analyst"}
                names = {name: row[name] for name in ("transaction_id", "card_id")}
                labelled_at = moment(row["arrived_us"]).isoformat()
                happened.append((LABELS.name, {**names, **said, "labelled_at": labelled_at}, row["arrived_us"]))
            else:
                order.append(row["transaction_id"])
                happened.append((TRANSACTIONS.name, message(row, odd=len(order) % 7 == 0), row["arrived_us"]))
        live.part(partition, happened)
    assert not live.dead_letters, live.dead_letters[:3]
    decided = {decision.transaction_id: decision.features or {} for decision in live.decisions}
    return np.array([[decided[name][feature] for feature in FEATURES] for name in order], np.float64)


def written(frame: pd.DataFrame, path: Path) -> Path:
    """Write a file of transactions with the columns of the contract, and own fields by the names of their columns."""
    columns = ["transaction_id", "card_id", "merchant_id", "amount", "currency", *OPTIONAL, "fraud"]
    columns += [name for name in ("sequence", "timestamp") if name in frame]
    own = {name: f"attribute_{name}" for name in (*OWN_NUMBERS, *OWN_TEXTS)}
    times = pd.to_datetime(frame["event_time_us"], unit="us", utc=True)
    table = pa.Table.from_pandas(
        frame[[*columns, *own]].rename(columns=own).assign(event_time=times), preserve_index=False
    )
    if path.suffix == ".csv":
        texts = [f"{time:%Y-%m-%dT%H:%M:%S.%fZ}" for time in times]
        table = table.set_column(table.schema.get_field_index("event_time"), "event_time", pa.array(texts))
        pacsv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def label_table(labels: pd.DataFrame) -> pa.Table:
    """Return labels as a table of the contract, in recorded order."""
    arrived = pd.to_datetime(labels["arrived_us"], unit="us", utc=True)
    frame = labels[["transaction_id", "card_id"]].assign(
        label=np.where(labels["fraud"], "fraud", "legitimate"), source="analyst", labelled_at=arrived,
        timestamp=arrived, sequence=labels["sequence"],
    )  # fmt: skip
    return pa.Table.from_pandas(frame, preserve_index=False)


def replayed_features(path: Path, labels: pa.Table, partitions: int) -> NDArray[np.float64]:
    """Return the features of a file in recorded order, as a backtest decides it."""
    from pipeline.backtest import Order, file_tables, replay

    parts = list(
        replay(
            models(), file_tables(path, chunk_rows=1_000), [labels], options=options(partitions), order=Order.RECORDED
        )
    )
    refused = [reject for part in parts for reject in part.rejects]
    assert not refused, refused[:3]
    return np.concatenate([part.features for part in parts])


def trained_features(path: Path, directory: Path) -> NDArray[np.float64]:
    """Return the features of a file in the order of event time, as ``train FILE`` computes them."""
    from pipeline.commands.training_input import rows_of_file
    from pipeline.features.catalogue import FEATURES
    from pipeline.history.files import resolve_mapping
    from pipeline.learning.regimes import LabelRegime
    from pipeline.settings import Settings

    settings = Settings(data_dir=directory / "data", kafka_bootstrap_servers=None)
    regime = LabelRegime(delay_days=3.0)
    return rows_of_file(path, resolve_mapping(path), settings, regime, None, FEATURES, early=False).data.features


def reference_frame(log: pd.DataFrame, partitions: int) -> pd.DataFrame:
    """Return a log as the reference reads it."""
    import msgspec

    from pipeline.engine.records.partitioner import partition_of
    from schemas.codec import decode_transaction
    from tests.contract.records import RATES, hour_and_weekday

    accepted = [
        decode_transaction(
            msgspec.json.encode({name: value for name, value in message(row).items() if value is not None}),
            record_timestamp_us=row["arrived_us"], future_tolerance_us=0, rates=RATES,
        )
        for row in log.to_dict("records")
    ]  # fmt: skip
    kind = log["transaction_type"].fillna("purchase")
    minor = np.array([item.amount_base_minor for item in accepted], np.int64)
    clocks = [hour_and_weekday(item) for item in accepted]
    return log.assign(
        transaction_type=kind,
        counts=kind.isin(["purchase", "cash"]),
        amount_minor=minor,
        amount=minor / 100,
        hour=[hour for hour, _ in clocks],
        weekday=[weekday for _, weekday in clocks],
        card_partition=[partition_of(name, partitions) for name in log["card_id"]],
        merchant_partition=[partition_of(name, partitions) for name in log["merchant_id"]],
    ).reset_index(drop=True)  # fmt: skip


def options(partitions: int) -> Any:
    """Return the options of the cards' kernel."""
    from pipeline.engine.cards.card_options import CardOptions
    from tests.contract.records import RATES

    return CardOptions(RATES, 300 * SECOND, 400 * DAY, 400 * DAY, partitions)


def models() -> Any:
    """Return a model of noise: nobody looks at what is decided."""
    import lightgbm

    from pipeline.decision.policy import Policy
    from pipeline.engine.scores.active_models import ActiveModels
    from pipeline.features.catalogue import FEATURES
    from pipeline.scoring.lightgbm_model import Calibration, LightGBMModel
    from pipeline.scoring.river_factory import first_river

    random = np.random.default_rng(0)
    data = lightgbm.Dataset(
        random.random((200, len(FEATURES))), random.integers(0, 2, 200), feature_name=list(FEATURES),
        params={"verbosity": -1},
    )  # fmt: skip
    parameters = {"objective": "binary", "verbosity": -1, "num_threads": 1, "num_leaves": 4}
    booster = lightgbm.train(parameters, data, num_boost_round=2)
    base = LightGBMModel(booster.model_to_string(), Calibration(slope=1.0, intercept=0.0), {})
    return ActiveModels(base, first_river(), Policy(0.99, blend=0.0, audit_rate=0.0, lightgbm_version=base.version))


if __name__ == "__main__":
    main()
