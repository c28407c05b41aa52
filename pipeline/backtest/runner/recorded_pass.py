"""A pass over the logs as they are: by the models that are asked for, or those that live decisions name."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Final

import msgspec
import numpy as np

from pipeline.backtest.input.live_decisions import live_decisions
from pipeline.backtest.input.sources import TOO_LATE
from pipeline.backtest.input.span import LATEST_US
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.runner.live_comparison import live_comparer
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.recorded_replay import RecordedReplay, Scored
from pipeline.backtest.runner.replay import Candidate
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.statistics import RunStatistics
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.joins import NO_TRANSACTION
from pipeline.engine.records.columns import Reject
from pipeline.engine.records.results import Result
from pipeline.engine.scores.decisions import Decisions
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.messages import Timestamp
from schemas.topics import ACCEPTED_LABELS, DEAD_LETTERS, REROUTED, TRANSACTIONS

_KINDS: Final = {
    TRANSACTIONS: "transaction",
    ACCEPTED_LABELS: "accepted label",
    REROUTED: "rerouted record",
}
AS_RECORDED: Final = "as recorded"
"""The variant in which each transaction is scored by the versions that its live decision names."""


class _LabelTime(msgspec.Struct, gc=False):
    """The part of a label that says when it was made."""

    labelled_at: Timestamp


_decode_label_time = msgspec.json.Decoder(_LabelTime).decode


def decide_as_recorded(
    request: Request, library: ModelLibrary, statistics: RunStatistics
) -> Iterator[tuple[str, Decisions]]:
    """Yield what each candidate, or, without any, `AS_RECORDED`, decides of the range, batch by batch.

    Raises as `pipeline.Backtest.run`.
    """
    source, span, candidates = request.source, request.span, statistics.candidates
    if not isinstance(source, TopicSource):
        raise TypeError("only topics have a recorded order")
    options = request.card_options(statistics.partitions)
    source.refuse_lost(span, statistics.partitions)
    replayed = RecordedReplay(source, span, options, library, partial(count_processed, statistics, source.settings))
    needs_live = request.compare_live or not candidates
    live = live_decisions(source, span, features=request.compare_live) if needs_live else None
    comparer = live_comparer(live, source, span, request.order) if live is not None and request.compare_live else None
    models = next((item.models for item in candidates.values()), None)
    none = np.empty(0, np.int64)
    with closing(replayed.run(models, live)) as passed:
        for parts in passed:
            for scored in parts:
                named = _named(scored, candidates)
                statistics.decided(named)
                yield from named.items()
                if comparer is not None:
                    for row, recorded in enumerate(scored.live):
                        comparer.compare(scored.decisions, row, recorded)
            decided_us = np.concatenate([none, *(item.decisions.transactions.event_time_us for item in parts)])
            stream_time_us = np.array([replayed.stream_time_us] if replayed.entered else [], np.int64)
            statistics.note(stream_time_us, decided_us, replayed.entered)
            if statistics.stopped():
                break
    statistics.first_us = min(statistics.first_us, replayed.first_event_us or LATEST_US)
    statistics.counts["profiled records that the card kernel does not give again"] = replayed.stored_otherwise
    if comparer is not None:
        statistics.comparison = comparer.finish(partial=statistics.partial)
    _read_labels(request, source, options, statistics)


def count_processed(statistics: RunStatistics, settings: Settings, result: Result) -> None:
    """Count what the card kernel says of a batch: repeats, outcomes of labels, and refused records."""
    statistics.repeated(result.counts["duplicate", ""])
    outcomes = Counter({detail: count for (what, detail), count in result.counts.items() if what == "label"})
    statistics.count_labels({AS_RECORDED: outcomes})
    kinds = {settings.topic(topic.name): kind for topic, kind in _KINDS.items()}
    kinds |= {settings.topic(topic.name): "label" for topic in settings.topics_of_labels}
    for output in result.outputs:
        if output.topic is DEAD_LETTERS:
            # The kernel's own stand behind the producer's.
            headers = {name: value or b"" for name, value in output.headers}
            code = headers["dead-letter-error"].decode()
            arrived_us = int(headers["dead-letter-timestamp-ms"]) * 1_000
            known_at_us = _known_at_us(output.value, arrived_us) if code == NO_TRANSACTION else None
            statistics.refused(kinds[headers["dead-letter-topic"].decode()], code, known_at_us)


def _known_at_us(label: bytes | None, arrived_us: int) -> int:
    """Return the time from which a label counts; the arrival of one too large to be kept with its refusal."""
    return arrived_us if label is None else max(timestamp_us(_decode_label_time(label).labelled_at), arrived_us)


def _named(scored: Scored, candidates: Mapping[str, Candidate]) -> dict[str, Decisions]:
    """Return each variant's decisions; ``scored`` is by the models of the first, if there is one."""
    if not candidates:
        return {AS_RECORDED: scored.decisions}
    first = next(iter(candidates))
    return {
        name: scored.decisions
        if name == first
        else scored.decisions.under(candidate.models.dated(scored.decisions.models.lists))
        for name, candidate in candidates.items()
    }


def _read_labels(request: Request, source: TopicSource, options: CardOptions, statistics: RunStatistics) -> None:
    """Read what is known of the range today, and count what the label agent has refused."""
    rejects: list[Reject] = []
    opened = source.open(request.span, request.acceptance(options), rejects, statistics.book)
    with closing(opened):
        for _ in opened.labels:
            pass
    for reject in rejects:
        if reject.code != TOO_LATE:  # which is of the order by event time alone
            statistics.refused(reject.kind, reject.code, reject.known_at_us)
