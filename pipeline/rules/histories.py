"""Histories that rules are tried on: exported topics, the topics themselves, or a file."""

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.backtest.api import Backtest
from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.labels.final_labels import FinalLabels
from pipeline.backtest.runner.input_quality import refused_text
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.decision.lists import NO_LISTS, refuse_unknown_lists
from pipeline.decision.rule_program import CodedTexts, Texts
from pipeline.decision.rules import COLUMNS, reader
from pipeline.engine.records.columns import digest_keys, name_keys
from pipeline.engine.scores.decisions import SELECTIONS, Decisions, field_reader
from pipeline.exports.intended_contents import export_batches, require_export
from pipeline.exports.rows import OFFSET, PARTITION, VALUE
from pipeline.exports.topic_export import TopicExport, named
from pipeline.expressions.trees import Node
from pipeline.features.catalogue import ACTIVE, FEATURES
from pipeline.features.feature_set import is_comparable
from pipeline.history import table_columns
from pipeline.history.files import ColumnMapping
from pipeline.history.mapped_files import FileMapping
from pipeline.learning.labels import KNOWN_FRAUD, KNOWN_LEGITIMATE, KNOWN_NOTHING
from pipeline.models.list_log import ListHistory
from pipeline.rules.hits import Counted, HitHistory, Hits
from pipeline.scoring.kinds import KINDS
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options
from pipeline.settings.mapping_file import own_mapping
from pipeline.settings.rate_table import load_rates
from schemas.times import US_PER_DAY
from schemas.topics import DECISION_FEATURES, DECISIONS, TRANSACTIONS

TOPICS: Final = "topics"
_OWN_TEXTS: Final = ("card_id", "merchant_id")
"""Texts that stand beside the features."""
_SOURCE: Final = ("source_partition", "source_offset")
_PARTITION_BITS: Final = 40
"""Bits of an offset in the key of a record."""
_POSITION: Final = (PARTITION, OFFSET)
_READ: Final = ("event_time", "amount_base", "versions_kernel", "card_id", "transaction_id", *_SOURCE)
_LISTS_VERSION: Final = "versions_lists"
_CODES: Final = ("rule_hits", "shadow_hits")
_ANY_TIME_US: Final = 2**62
"""Records were accepted when they came, whatever the time is now."""
_LABEL: Final = ["card_id", "transaction_id", "label", "source", "labelled_at"]


def read_history(
    counted: Counted,
    history: str,
    settings: Settings,
    cluster: Callable[[], str],
    *,
    lists_of_today: bool = False,
    mapping: ColumnMapping | FileMapping | None = None,
) -> HitHistory:
    """Let rules count a directory of exported topics, a file, or `TOPICS`.

    Args:
        counted: What counts.
        history: Path of a directory or a file, or `TOPICS`.
        settings: Settings of the cluster.
        cluster: Returns the address of the cluster; called for `TOPICS`, and where lists are read.
        lists_of_today: Read the lists as they are, not as they were at each decision; of a file they always are.
        mapping: Mapping of a file. Default: its columns are found by their names.

    Raises:
        ExportError: The export lacks a topic or a file.
        UnusableSource: The file cannot be read.
        RegistryError: A file has no scores, and the registry has no active model that gives them.
    """
    path = Path(history)
    leaks = bool(counted.lists) and (lists_of_today or path.is_file())
    versions = ModelLibrary(settings, cluster() if counted.lists else None).list_history
    refuse_unknown_lists(counted.lists, lambda: versions.numbered(-1).definitions)
    lists = _Lists(versions, of_today=leaks or not counted.lists)
    if history == TOPICS:
        with tempfile.TemporaryDirectory() as directory:
            wanted = [named(name, settings.topics) for name in _topics(counted, settings)]
            TopicExport(cluster(), settings, Path(directory), wanted).run()
            found = _on_export(counted, Path(directory), settings, lists)
    elif path.is_dir():
        found = _on_export(counted, path, settings, lists)
    else:
        found = _on_file(counted, path, settings, lists, mapping)
    return found._replace(leaks=leaks)


def _topics(counted: Counted, settings: Settings) -> list[str]:
    texts = [TRANSACTIONS.name] if {*counted.texts} - {*_OWN_TEXTS} else []
    return [DECISION_FEATURES.name, DECISIONS.name, *texts, *settings.label_topics]


def _on_file(
    counted: Counted, path: Path, settings: Settings, lists: "_Lists", mapping: ColumnMapping | FileMapping | None
) -> HitHistory:
    """Let the registry's active model decide the file, by its features and scores."""
    parts = list[Hits]()

    def take(_: str, decided: Decisions) -> None:
        taken, rules = decided.transactions, decided.models.evaluated_rules
        texts = taken.text_lists(counted.texts)
        read = field_reader(lists.today or NO_LISTS, decided.features, decided.logits, decided.score, taken, texts)
        rows = counted.take(
            read, taken.event_time_us, np.zeros(len(decided), np.int64), lambda row: taken.transaction_id[row].as_py()
        )
        truth = np.full(len(rows), KNOWN_NOTHING) if taken.truth is None else taken.truth[rows]
        why = np.array([*SELECTIONS, None], object)[decided.selection[rows]]
        codes = [sum(map(tuple, rules.named(numbers)), ()) for numbers in decided.hits[rows]]
        card = name_keys(taken.card_id.take(pa.array(rows)))[:, 0]
        amount = taken.amount_base_minor[rows] / 100
        kernel = np.zeros(len(rows), np.int64)
        of_truth = truth == KNOWN_FRAUD, truth == KNOWN_LEGITIMATE
        parts.append(Hits(taken.event_time_us[rows], amount, kernel, card, why, _objects(codes), *of_truth))

    decided = Backtest(path, settings=settings, mapping=mapping).each(take)
    return HitHistory(_concatenated(parts), 0, frozenset({0}), left_out=refused_text(decided.counts))


def _on_export(counted: Counted, directory: Path, settings: Settings, lists: "_Lists") -> HitHistory:
    topics = _topics(counted, settings)
    require_export(directory, topics[: -len(settings.label_topics)], topics)
    own, others = [[name for name in counted.texts if (name in _OWN_TEXTS) is is_own] for is_own in (True, False)]
    exported = _ExportedTexts(directory, others, settings) if others else None
    lists.find(directory)
    kernels: dict[str, int] = {}
    parts, keys, digests = list[Hits](), [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
    read_columns = {f"feature_{FEATURES[COLUMNS[name]]}" for name in counted.features} | {*own, *_READ}
    scores = {"score", *(kind.log_odds for kind in KINDS)} if counted.scores else set()
    for rows in _tables(directory, DECISION_FEATURES.name, [*read_columns, *scores], "event_time"):
        key, event_us = _keys(rows, *_SOURCE), _times_us(rows, "event_time")
        texts = {name: _coded_texts(rows, name) for name in own} | (exported.texts_at(key) if exported else {})
        read = reader(
            texts.__getitem__,
            _numbers(rows, "score") if scores else None,
            partial(_log_odds, rows),
            partial(_feature, rows),
            partial(lists.truth, key=key, texts=texts, event_time_us=event_us),
        )
        names = rows.column("versions_kernel").combine_chunks().dictionary_encode()
        numbers = np.array([kernels.setdefault(name, len(kernels)) for name in names.dictionary.to_pylist()], np.int64)
        kernel = numbers[names.indices.to_numpy()]
        found = counted.take(read, event_us, kernel, lambda row, rows=rows: rows.column("transaction_id")[row].as_py())
        hit = rows.select(["card_id", "transaction_id", "amount_base"]).take(pa.array(found))
        cards, ids = (hit.column(name).combine_chunks() for name in ("card_id", "transaction_id"))
        unknown = np.zeros(len(found), np.bool_)
        nothing = np.full(len(found), None, object)
        amount = _numbers(hit, "amount_base")
        parts.append(
            Hits(event_us[found], amount, kernel[found], name_keys(cards)[:, 0], nothing, nothing, unknown, unknown)
        )
        keys.append(key[found])
        digests.append(digest_keys(cards, ids))
    labels = _labels(directory, settings)
    known = labels.column("known", labels.find(np.concatenate(digests)), KNOWN_NOTHING)
    selection, codes = _decided(directory, np.concatenate(keys))
    hits = _concatenated(parts)._replace(
        selection=selection, others=codes, fraud=known == KNOWN_FRAUD, legitimate=known == KNOWN_LEGITIMATE
    )
    comparable = frozenset(number for name, number in kernels.items() if is_comparable(name))
    return HitHistory(hits, round(settings.maturity_days * US_PER_DAY), comparable)


class _ExportedTexts:
    """Texts of exported transactions by the positions of their records: some bytes a row, and each text once."""

    def __init__(self, directory: Path, names: list[str], settings: Settings) -> None:
        options = card_options(settings, load_rates(settings), 1, mapping=own_mapping(settings))
        self._acceptance = Acceptance(options.rates, _ANY_TIME_US, mapper=options.mapper)
        self._words: dict[str, dict[str | None, int]] = {name: {None: 0} for name in names}
        keys, codes = [np.empty(0, np.int64)], [np.empty((len(names), 0), np.int32)]
        columns = [*_POSITION, VALUE, *(name for name in names if name not in ACTIVE.texts)]
        for rows in _tables(directory, TRANSACTIONS.name, columns, OFFSET):
            keys.append(_keys(rows, *_POSITION))
            codes.append(np.array([*self._coded(rows)], np.int32))
        key = np.concatenate(keys)
        order = np.argsort(key, kind="stable")
        self._keys, self._codes = key[order], np.concatenate(codes, axis=1)[:, order]
        self._texts = [[*words] for words in self._words.values()]

    def texts_at(self, key: NDArray[np.int64]) -> dict[str, Texts]:
        """Return the texts of some records, by name; None where the export lacks a record."""
        if not len(self._keys):
            return {name: [None] * len(key) for name in self._words}
        at = np.searchsorted(self._keys, key).clip(max=len(self._keys) - 1)
        there = self._keys[at] == key
        columns = zip(self._words, self._texts, self._codes, strict=True)
        return {name: CodedTexts(np.where(there, codes[at], 0), texts) for name, texts, codes in columns}

    def _coded(self, rows: pa.Table) -> Iterator[NDArray[np.int64]]:
        """Yield a number for each text of a column; what columns do not say is read from the record's bytes."""
        kept = np.flatnonzero(rows.column(VALUE).is_valid().to_numpy())
        values = rows.column(VALUE).take(pa.array(kept)).to_pylist()
        accepted, _ = self._acceptance.records(values, np.zeros(len(kept), np.int64))
        for name, words in self._words.items():
            codes = np.zeros(len(rows), np.int64)
            if name in rows.column_names:
                codes = _coded(rows.column(name).combine_chunks(), words)
            codes[kept] = 0
            codes[kept[accepted.row]] = _coded(accepted.text(name), words)
            yield codes


class _Lists:
    """The lists that decisions were made by.

    Args:
        history: The versions of the cluster's lists.
        of_today: Read the newest in their place.
    """

    def __init__(self, history: ListHistory, *, of_today: bool) -> None:
        self.today, self._history = history.numbered(-1) if of_today else None, history
        self._keys, self._versions = np.empty(0, np.int64), np.empty(0, object)

    def find(self, directory: Path) -> None:
        """Find the versions that exported decisions name, where they are asked for."""
        if self.today is not None:
            return
        keys, versions = [self._keys], [self._versions]
        for rows in _tables(directory, DECISIONS.name, [*_SOURCE, _LISTS_VERSION], "event_time"):
            named = rows.column(_LISTS_VERSION).to_pylist() if _LISTS_VERSION in rows.column_names else []
            keys.append(_keys(rows, *_SOURCE))
            versions.append(np.array([sys.intern(name or "") for name in named] or [""] * len(rows), object))
        key = np.concatenate(keys)
        order = np.argsort(key, kind="stable")
        self._keys, self._versions = key[order], np.concatenate(versions)[order]

    def truth(
        self, test: Node, key: NDArray[np.int64], texts: Mapping[str, Texts], event_time_us: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the truth of a test of a list of n transactions; see `ListSet.truth`."""
        if self.today is not None or not len(self._keys):
            return (self.today or NO_LISTS).truth(test, texts.__getitem__, event_time_us)
        # A position may be there twice, and the last decision of it counts.
        at = (np.searchsorted(self._keys, key, "right") - 1).clip(min=0)
        versions = np.where(self._keys[at] == key, self._versions[at], "")
        found, field = np.empty(len(key)), test[1][1]
        for version in dict.fromkeys(versions.tolist()):
            rows = np.flatnonzero(versions == version)
            of_rows = {field: [texts[field][row] for row in rows.tolist()]}
            found[rows] = self._history.named(version).truth(test, of_rows.__getitem__, event_time_us[rows])
        return found


def _coded_texts(rows: pa.Table, name: str) -> Texts:
    encoded = rows.column(name).combine_chunks().dictionary_encode(null_encoding="encode")
    return CodedTexts(np.asarray(encoded.indices, np.int64), encoded.dictionary.to_pylist())


def _coded(column: pa.Array, words: dict[str | None, int]) -> NDArray[np.int64]:
    encoded = column.cast(pa.string()).dictionary_encode(null_encoding="encode")
    numbers = [words.setdefault(word, len(words)) for word in encoded.dictionary.to_pylist()]
    return np.array(numbers, np.int64)[np.asarray(encoded.indices, np.int64)]


def _tables(directory: Path, topic: str, columns: Iterable[str], needed: str) -> Iterator[pa.Table]:
    """Yield the rows of an exported topic that have a column; what could not be decoded has none of a message."""
    for batch in export_batches(directory, topic, sorted({*columns, needed})):
        table = pa.Table.from_batches([batch])
        yield table.filter(pc.is_valid(table.column(needed)))


def _keys(rows: pa.Table, partition: str, offset: str) -> NDArray[np.int64]:
    """Return a number for the position of each record."""
    numbers, offsets = (np.asarray(rows.column(name).to_numpy(), np.int64) for name in (partition, offset))
    return numbers << _PARTITION_BITS | offsets


def _numbers(rows: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column, NaN for null; a file of another declaration may lack it."""
    if name not in rows.column_names:
        return np.full(len(rows), np.nan)
    return np.asarray(rows.column(name).to_numpy(), np.float64)


def _log_odds(rows: pa.Table, kind: int) -> NDArray[np.float64]:
    return _numbers(rows, KINDS[kind].log_odds)


def _feature(rows: pa.Table, column: int) -> NDArray[np.float64]:
    return _numbers(rows, f"feature_{FEATURES[column]}")


def _times_us(rows: pa.Table, name: str) -> NDArray[np.int64]:
    return table_columns.times_us(table_columns.column(rows, name), "UTC")[0]


def _decided(directory: Path, keys: NDArray[np.int64]) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Return of decisions by their sources why there was an alert, and the codes of rules that hit."""
    order = np.argsort(keys, kind="stable")
    wanted = keys[order]
    selection, codes = np.full(len(keys), None, object), _objects([()] * len(keys))
    for rows in _tables(directory, DECISIONS.name, [*_SOURCE, "selection", *_CODES], "event_time"):
        key = _keys(rows, *_SOURCE)
        # A position may be there twice, and the last decision of it counts.
        first, end = np.searchsorted(wanted, key), np.searchsorted(wanted, key, "right")
        hit = np.flatnonzero(end > first)
        columns = (rows.column(name).take(pa.array(hit)).to_pylist() for name in ("selection", *_CODES))
        for row, why, active, shadow in zip(hit.tolist(), *columns, strict=True):
            at = order[first[row] : end[row]]
            selection[at] = why
            codes[at] = _objects([(*_listed(active), *_listed(shadow))] * len(at))
    return selection, codes


def _listed(codes: str | None) -> list[str]:
    return msgspec.json.decode(codes, type=list[str]) if codes else []


def _labels(directory: Path, settings: Settings) -> FinalLabels:
    frames = [pd.DataFrame(columns=_LABEL)]
    for topic in settings.label_topics:
        for rows in _tables(directory, topic, _LABEL, "transaction_id"):
            frame = rows.select(_LABEL).to_pandas()
            allowed = [source for source in frame["source"].unique() if settings.label_sources.allows(topic, source)]
            frames.append(frame[frame["source"].isin(allowed)])
    filled = [frame for frame in frames if len(frame)]
    return FinalLabels(pd.concat(filled, ignore_index=True) if filled else frames[0])


def _concatenated(parts: list[Hits]) -> Hits:
    none = Hits(*(np.empty(0, dtype) for dtype in (*"qdqq", object, object, bool, bool)))
    return Hits._make(np.concatenate(columns) for columns in zip(none, *parts, strict=True))


def _objects(values: list[Any]) -> NDArray[np.object_]:
    found = np.empty(len(values), object)
    found[:] = values
    return found
