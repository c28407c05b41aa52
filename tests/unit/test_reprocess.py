"""Decisions of a backtest as messages, and what the commands and pages of exports and reprocessing say."""

import json
import re
from datetime import timedelta
from pathlib import Path

import click
import jsonschema
import msgspec
import pytest
from click.testing import CliRunner

from pipeline import Backtest
from pipeline.backtest.messages import NOT_READ, DecisionWriter
from pipeline.backtest.records import Numbering
from pipeline.backtest.reprocess import DECIDED, RUN, ReprocessError, look, refuse_own, run_name
from pipeline.cli import main
from pipeline.commands import export, reprocess
from pipeline.engine.placement import partition_of
from pipeline.settings import Settings
from schemas.messages import Decision, SourceRecord
from schemas.records import Record
from schemas.topics import TOPICS
from tests.contract.records import RATES
from tests.helpers.champion import active
from tests.helpers.histories import busy_history, play
from tests.helpers.live import Live
from tests.helpers.logs import after, decision
from tests.unit.test_backtest import models, options, run

ROOT = Path(__file__).resolve().parents[2]


def test_messages_are_those_of_the_live_kernels() -> None:
    history, card = busy_history(7), options(3)
    live = play(history, Live(models(), card)).decisions
    writer, now = DecisionWriter(Numbering(3), 2, RATES), after(500)
    values = [value for part in run(history, card, 100) for value in writer.values(part, now)]
    rows = [int(row) for part in run(history, card, 100) for row in part.transactions.row]
    assert len(values) == len(live) > 100
    assert {one.currency for one in live} > {"EUR"}
    schema = json.loads((ROOT / "schemas/json/decision.json").read_text(encoding="utf-8"))
    for value, row, other in zip(values, rows, live, strict=True):
        one = msgspec.json.decode(value, type=Decision)
        assert (one.ingested_at, one.decided_at, one.log.offset) == (now, now, NOT_READ)
        assert one.log.partition == partition_of(one.merchant_id, 2)
        assert one.source == SourceRecord(topic="transactions", partition=row % 3, offset=row // 3)
        moved = {name: getattr(other, name) for name in ("ingested_at", "decided_at", "log", "source")}
        assert msgspec.structs.replace(one, **moved) == other
        assert one.event_time.utcoffset() == timedelta(0)
    jsonschema.validate(json.loads(values[0]), schema, format_checker=jsonschema.FormatChecker())


def test_topics_of_a_pipeline_are_refused_whatever_their_prefix() -> None:
    for prefix in ("", "shop-"):
        settings = Settings(topic_prefix=prefix)
        for topic in TOPICS:
            for name in (topic.name, f"replay-{topic.name}"):
                with pytest.raises(ReprocessError, match="is the name of a topic of the pipeline"):
                    refuse_own(name, settings)
        refuse_own("decisions-candidate", settings)
        with pytest.raises(ReprocessError, match="has no name"):
            refuse_own("", settings)
    for into, prefix in (("__consumer_offsets", ""), ("__transaction_state", ""), ("_own", "_")):
        with pytest.raises(ReprocessError, match=f"^{prefix}{into} is the name of a topic of Kafka's own"):
            refuse_own(into, Settings(topic_prefix=prefix))
    refuse_own("__mine", Settings(topic_prefix="shop-"))


def named(monkeypatch: pytest.MonkeyPatch, settings: Settings, *, learn: bool = False, partitions: int = 3) -> str:
    monkeypatch.setattr(Backtest, "partitions", partitions)
    asked = Backtest(models={"candidate": active()}, learn=learn, settings=settings, bootstrap="127.0.0.1:1")
    (candidate,) = asked.candidates().values()
    ids = {"transactions": "a", "labels": "b"}
    return run_name(asked, 7, candidate, asked.card_options(partitions), "cluster", ids)


@pytest.mark.parametrize("learn", [False, True])
def test_a_run_is_named_by_the_settings_that_its_decisions_depend_on(
    monkeypatch: pytest.MonkeyPatch, learn: bool
) -> None:
    settings = Settings()
    base = named(monkeypatch, settings, learn=learn)
    assert named(monkeypatch, settings, learn=learn) == base
    assert named(monkeypatch, settings, learn=not learn) != base
    assert named(monkeypatch, settings, learn=learn, partitions=4) != base
    for always, changed in (
        (True, {"dedup_horizon_days": 3.0}),
        (True, {"label_horizon_days": 50.0}),
        (True, {"future_tolerance_s": 7.0}),
        (False, {"maturity_days": 9.0}),
        (False, {"negative_sample_rate": 0.123}),
    ):
        other = named(monkeypatch, settings.model_copy(update=changed), learn=learn)
        assert (other != base) == (always or learn), changed


def record(offset: int, run: str | None, total: int | None = None) -> Record:
    headers = [(RUN, run.encode())] if run is not None else []
    headers += [(DECIDED, str(total).encode())] if total is not None else []
    return Record("candidate", 0, offset, 0, b"c1", decision(offset), tuple(headers))


def test_a_run_of_which_decisions_are_gone_is_not_complete() -> None:
    records = [record(0, "r"), record(1, "r"), record(2, "r", 4), record(3, "r", 4)]
    whole = look([records[:3], records[3:]])
    assert (whole.decisions, whole.total, whole.runs) == (4, 4, {"r"})
    whole.refuse_other("candidate", "r")
    with pytest.raises(ReprocessError, match=r"holds 3 of the 4 decisions that run r has written.*--replace"):
        look([records[1:]]).refuse_other("candidate", "r")
    begun = look([records[:2]])
    assert (begun.decisions, begun.total) == (2, None)
    begun.refuse_other("candidate", "r")
    assert begun.fingerprint not in (0, whole.fingerprint, look([records[1:2]]).fingerprint)
    with pytest.raises(ReprocessError, match="4 decisions of run r; this one is other, of other models"):
        whole.refuse_other("candidate", "other")
    assert None in look([[record(0, None)]]).runs


@pytest.mark.parametrize(
    ("command", "page"), [(export.command, "docs/export.md"), (reprocess.command, "docs/reprocess.md")]
)
def test_the_pages_tell_every_option(command: click.Command, page: str) -> None:
    cells = re.findall(r"^\| (`[^|]*) \|", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    told = {option for cell in cells for option in re.findall(r"`(--[a-z-]+)`", cell)}
    assert told == {name for one in command.params if isinstance(one, click.Option) for name in one.opts}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["export", "out"], 2, "name a cluster with --bootstrap"),
        (["export", "out", "nobody", "--bootstrap", "127.0.0.1:1"], 1, "'nobody' is no topic of the pipeline"),
        (["reprocess", "--into", "mine"], 1, "a cluster to read topics of"),
        (["reprocess", "--into", "decisions", "--bootstrap", "127.0.0.1:1"], 1, "is the name of a topic"),
        (["reprocess"], 2, "--into"),
    ],
)
def test_what_cannot_be_done_is_told(arguments: list[str], code: int, text: str, tmp_path: Path) -> None:
    environment = {"FRAUD_PIPELINE_DATA_DIR": str(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": None}
    result = CliRunner().invoke(main, arguments, env=environment)
    assert (result.exit_code, text in result.output.replace("\n", " ")) == (code, True), result.output
    assert not Path("out").exists()
