"""One pass over the logs as they are: by the models that are asked for, or those that live decisions name."""

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Final

import msgspec
import numpy as np

from pipeline.backtest.comparing import comparer_with, live_decisions
from pipeline.backtest.findings import Findings
from pipeline.backtest.live import Comparer
from pipeline.backtest.recorded import RecordedReplay, Scored
from pipeline.backtest.request import Request
from pipeline.backtest.run import Candidate
from pipeline.backtest.sources import LATEST_US, TOO_LATE, TopicSource
from pipeline.backtest.versions import ModelLibrary
from pipeline.engine.card import CardOptions
from pipeline.engine.columns import Reject
from pipeline.engine.decisions import Decisions
from pipeline.engine.joins import NO_TRANSACTION
from pipeline.engine.results import Result
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


class _Said(msgspec.Struct, gc=False):
    """What of a label tells when it was made."""

    labelled_at: Timestamp


_decode_said = msgspec.json.Decoder(_Said).decode


def decide_as_recorded(
    request: Request,
    candidates: Mapping[str, Candidate],
    partitions: int,
    library: ModelLibrary,
    findings: Findings,
) -> None:
    """Decide the range by ``candidates``, or, without any, as `AS_RECORDED`. Raises as `pipeline.Backtest.run`."""
    source, span = request.source, request.span
    if not isinstance(source, TopicSource):
        raise TypeError("only topics have a recorded order")
    options = request.card_options(partitions)
    source.refuse_lost(span, partitions)
    replayed = RecordedReplay(source, span, options, library, partial(count_judged, findings, source.settings))
    needs_live = request.compare_live or not candidates
    live = live_decisions(source, span, features=request.compare_live) if needs_live else None
    comparer = comparer_with(live, source, span, request.order) if live is not None and request.compare_live else None
    models = next((one.models for one in candidates.values()), None)
    none = np.empty(0, np.int64)
    with closing(replayed.run(models, live)) as passed:
        for parts in passed:
            for scored in parts:
                findings.pass_on(_named(scored, candidates))
                if comparer is not None:
                    _compare(comparer, scored)
            decided_us = np.concatenate([none, *(one.decisions.transactions.event_time_us for one in parts)])
            newest_us = np.array([replayed.newest_us] if replayed.entered else [], np.int64)
            findings.note(newest_us, decided_us, replayed.entered)
            if findings.stopped():
                break
    findings.first_us = min(findings.first_us, replayed.first_event_us or LATEST_US)
    findings.counts["profiled records that the card kernel does not give again"] = replayed.stored_otherwise
    if comparer is not None:
        findings.comparison = comparer.finish(partial=findings.partial)
    _read_labels(request, source, options, findings)


def count_judged(findings: Findings, settings: Settings, result: Result) -> None:
    """Count what the card kernel says of a batch: repeats, outcomes of labels, and refused records."""
    findings.repeated(result.counts["duplicate", ""])
    outcomes = Counter({detail: count for (what, detail), count in result.counts.items() if what == "label"})
    findings.count_labels({AS_RECORDED: outcomes})
    kinds = {settings.topic(topic.name): kind for topic, kind in _KINDS.items()}
    kinds |= {settings.topic(topic.name): "label" for topic in settings.topics_of_labels}
    for output in result.outputs:
        if output.topic is DEAD_LETTERS:
            # The kernel's own stand behind the producer's.
            told = {name: value or b"" for name, value in output.headers}
            code = told["dead-letter-error"].decode()
            arrived_us = int(told["dead-letter-timestamp-ms"]) * 1_000
            known_at_us = _known_at_us(output.value, arrived_us) if code == NO_TRANSACTION else None
            findings.refused(kinds[told["dead-letter-topic"].decode()], code, known_at_us)


def _known_at_us(label: bytes | None, arrived_us: int) -> int:
    """From when on a label counts; of one that is too large to be kept with its refusal, its arrival tells."""
    return arrived_us if label is None else max(timestamp_us(_decode_said(label).labelled_at), arrived_us)


def _named(scored: Scored, candidates: Mapping[str, Candidate]) -> dict[str, Decisions]:
    """What each variant decides; ``scored`` is by the models of the first, if there is one."""
    if not candidates:
        return {AS_RECORDED: scored.decisions}
    first = next(iter(candidates))
    return {
        name: scored.decisions if name == first else scored.decisions.under(one.models)
        for name, one in candidates.items()
    }


def _compare(comparer: Comparer, scored: Scored) -> None:
    for row, recorded in enumerate(scored.live):
        if recorded is None:
            comparer.alone(scored.decisions, row)
        else:
            comparer.pair(scored.decisions, row, recorded)


def _read_labels(request: Request, source: TopicSource, options: CardOptions, findings: Findings) -> None:
    """Read what is known of the range today, and count what the label agent has refused."""
    rejects: list[Reject] = []
    opened = source.open(request.span, request.acceptance(options), rejects, findings.book)
    with closing(opened):
        for _ in opened.labels:
            pass
    for reject in rejects:
        if reject.code != TOO_LATE:  # which is of the order by event time alone
            findings.refused(reject.kind, reject.code, reject.known_at_us)
