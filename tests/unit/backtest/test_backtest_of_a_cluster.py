"""A file beside a cluster: its rules and the lists of each time decide; a directory of rules decides in their place."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.backtest.api import Backtest
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.reprocess.reprocess import reprocess
from pipeline.backtest.reprocess.written_runs import ReprocessError
from pipeline.backtest.runner import model_library
from pipeline.decision.lists import manifest_payload
from pipeline.decision.rules import RuleSet
from pipeline.kafka.session.quarantine import control_record
from pipeline.models.library import PublishedVersions
from pipeline.models.list_log import LEAKS
from pipeline.models.suppressions import Suppressed
from pipeline.rules.histories import read_history
from pipeline.rules.set_report import SetReport
from pipeline.scoring.errors import ModelError
from pipeline.scoring.payload import payload_digest
from pipeline.settings import Settings
from pipeline.settings.rule_files import RuleFileError
from schemas.codec import timestamp_us
from schemas.messages import Activation, ListChange, VersionReference
from schemas.records import Record
from schemas.topics import CONTROL
from tests.helpers.backtest_inputs import START, backtest_of, simulated_days
from tests.helpers.champion import empty_model_set, policy, rule
from tests.helpers.lists import MemoryLog, definition, entry
from tests.helpers.models import small_model
from tests.unit.backtest.test_backtest_versions import Contents, model, published

DAYS = 20
FRENCH, GERMAN = START + timedelta(days=5), START + timedelta(days=12)
"""When each country is suppressed."""
NEVER_US = timestamp_us(START + timedelta(days=4_000))
HEADER = "-- owner: dana\n-- reason: A test.\n"
WHOLE = ReportOptions(replicates=0)


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    frame = simulated_days(DAYS)
    return frame.assign(country=np.array(["FR", "DE", None], object)[np.arange(len(frame)) % 3])


def versions(log: MemoryLog) -> Sequence[tuple[Any, list[tuple[str, bytes]]]]:
    """What a cluster has activated, and when: models and a rule, and two versions of a suppression."""
    first = ListChange(
        change="",
        before="",
        definitions=[definition("quiet", "suppress", "country")],
        entries=[entry("quiet", "FR", NEVER_US)],
    )
    first_name = log.write(first)
    second = ListChange(change="", before=first_name, entries=[entry("quiet", "DE", NEVER_US)])
    base = small_model()
    models = [
        ("lightgbm", base.to_payload()),
        ("policy", policy(0.9999).to_payload()),
        ("rules", RuleSet([rule("anywhere", "country = 'FR' or country = 'DE'")]).to_payload()),
    ]
    return [
        (START, models),
        (FRENCH, [("lists", manifest_payload(first_name, "", 1))]),
        (GERMAN, [("lists", manifest_payload(log.write(second), first_name, 2))]),
    ]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a cluster in memory; whoever asks for another one fails."""
    log = MemoryLog()
    records: list[Any] = []
    control: list[Record] = []
    for at, named in versions(log):
        references = []
        for name, payload in named:
            digest = payload_digest(payload)
            references.append(VersionReference(name=name, version=digest[:12], digest=digest, offset=len(records)))
            records.append(model(name, digest[:12], payload))
        output = control_record(Activation(versions=references, activated_at=at))
        control.append(Record(CONTROL.name, 0, len(control), 0, output.key, output.value))

    def on(bootstrap: str, settings: Settings, _: Any) -> PublishedVersions:
        assert bootstrap == "a cluster"
        return PublishedVersions(settings, control, Contents(published(*records)), empty_model_set())

    monkeypatch.setattr(model_library.PublishedVersions, "on", on)
    monkeypatch.setattr(model_library, "reached", lambda *_: None)
    monkeypatch.setattr(model_library, "ListLog", lambda *_: log)
    return "a cluster"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    directory = tmp_path / "own"
    directory.mkdir()
    for code, condition in (
        ("abroad", "country <> 'DE'"),
        ("dear", "amount > 50"),
        ("web", "not channel = 'web'"),
    ):
        (directory / f"{code}.sql").write_text(f"-- code: {code}\n{HEADER}{condition}\n")
    return directory


def decided(backtest: Backtest) -> pd.DataFrame:
    parts: list[pd.DataFrame] = []
    backtest.each(lambda _, made: parts.append(made.frame()))
    return pd.concat(parts, ignore_index=True)


def by_definition(history: pd.DataFrame, quiet: "pd.Series[bool]") -> dict[str, Suppressed]:
    """Return what suppressions hide, where only the rule alerts: by the country."""
    found = {}
    for country, rows in history[quiet].groupby("country"):
        minor = (rows["amount"] * 100).round().astype(int)
        frauds = rows["fraud"].astype(bool)
        found[str(country)] = Suppressed(len(rows), int(minor.sum()), int(frauds.sum()), int(minor[frauds].sum()))
    return found


@pytest.mark.parametrize("lists", ["then", "today"])
def test_the_rules_and_lists_of_a_cluster_decide_a_file(
    cluster: str, history: pd.DataFrame, file: Path, settings: Settings, lists: str
) -> None:
    asked = {"bootstrap": cluster, "lists": lists, "settings": settings}
    found, country, at = decided(backtest_of(file, **asked)), history["country"], history["event_time"]
    is_today = lists == "today"
    quiet = (country.eq("FR") & (is_today | (at >= FRENCH))) | (country.eq("DE") & (is_today | (at >= GERMAN)))
    assert found["rule_hits"].map(list).tolist() == [["anywhere"] if given else [] for given in country.notna()]
    assert found["list_hits"].map(list).tolist() == [["quiet"] if each else [] for each in quiet]
    assert found["action"].tolist() == ["alert" if each else "allow" for each in country.notna() & ~quiet]
    assert len(set(found["lists_version"])) == (1 if is_today else 3)

    result = backtest_of(file, **asked).run()
    assert result.parameters["lists"] == lists
    assert result.warnings.count(LEAKS) == is_today
    report = build_report(result, WHOLE)
    assert (f"Warning: {LEAKS}" in report.text.replace("\n", " ")) is is_today
    (variant,) = report.content.variants
    assert variant.models["policy"] == policy(0.9999).version, "the cluster's, not the registry's"
    assert [each.name.partition("/")[0] for each in variant.overruled] == ["quiet", "quiet"]
    expected = by_definition(history, quiet)
    assert {
        (each.hits, round(100 * each.amount), each.frauds, round(100 * each.fraud_amount)) for each in variant.overruled
    } == {(each.hits, each.amount_minor, each.frauds, each.fraud_minor) for each in expected.values()}
    assert all(each.frauds for each in expected.values())


def test_no_cluster_is_asked_where_none_is_named(
    cluster: str, file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    del cluster
    monkeypatch.setattr(model_library, "reached", lambda *_: pytest.fail("a cluster was asked"))
    result = backtest_of(file, settings=settings.model_copy(update={"kafka_bootstrap_servers": "another"})).run()
    assert result.parameters["lists"] == "none"
    assert "rules" not in result.parameters
    report = build_report(result, WHOLE)
    assert (report.content.variants[0].rules, report.content.variants[0].overruled) == ([], [])
    assert 'id="overruled"' not in report.html


def test_rules_of_files_hit_as_their_test_says_in_place_of_those_of_the_cluster(
    cluster: str, history: pd.DataFrame, file: Path, settings: Settings, rules: Path
) -> None:
    conditions = {"abroad": "country <> 'DE'", "dear": "amount > 50", "web": "not channel = 'web'"}
    counted = SetReport(RuleSet([rule(code, text) for code, text in conditions.items()]))
    tested = {each.code: each for each in counted.worth(read_history(counted, str(file), settings, str), {})}
    for bootstrap in (None, cluster):
        result = backtest_of(file, rules=rules, bootstrap=bootstrap, settings=settings).run()
        assert result.parameters["rules"] == "own"
        assert result.rules_since == {}
        worth = {each.code: each for each in build_report(result, WHOLE).content.variants[0].rules}
        assert worth.keys() == conditions.keys()
        for code, each in worth.items():
            assert (each.state, each.hits, each.frauds) == ("active", tested[code].hits, tested[code].frauds)
        assert worth["abroad"].hits == history["country"].eq("FR").sum()
        assert worth["dear"].hits == history["amount"].gt(50).sum()
        assert worth["web"].hits == 0, "the file has no channel"


def test_rules_that_nobody_has_published_decide_into_no_topic(settings: Settings, rules: Path) -> None:
    with pytest.raises(ReprocessError, match="leave --train, --budget, --pace, --rules and --labels out"):
        reprocess(backtest_of(bootstrap="a cluster", rules=rules, settings=settings), "mine")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"lists": "today"}, "the lists of today are a cluster's"),
        ({"lists": "today", "bootstrap": "a cluster", "history": None, "compare_live": True}, "lists of today"),
        ({"lists": "today", "bootstrap": "a cluster", "history": None, "order": "recorded"}, "lists of today"),
        ({"lists": "tomorrow"}, "'tomorrow' is not a valid ListTime"),
        ({"rules": "own", "bootstrap": "a cluster", "history": None, "order": "recorded"}, "rules are those of the"),
    ],
)
def test_what_has_no_meaning_is_refused(
    file: Path, settings: Settings, rules: Path, asked: dict[str, Any], sentence: str
) -> None:
    if "rules" in asked:
        asked |= {"rules": rules}
    with pytest.raises(ValueError, match=sentence):
        backtest_of(**{"history": file, "settings": settings, **asked})


@pytest.mark.parametrize(
    ("condition", "error", "sentence"),
    [
        ("country in list('home')", ValueError, "read the lists home, which a cluster has: name it with --bootstrap"),
        ("ip = '10.0.0.1'", ModelError, "rules read ip, which FRAUD_PIPELINE_DROPPED_FIELDS keeps out"),
        ("card_max_amount_3d > 5", RuleFileError, "card_max_amount_3d must be declared first"),
        ("cuntry = 'DE'", RuleFileError, "there is no field cuntry"),
    ],
)
def test_a_rule_that_cannot_be_evaluated_is_refused_before_anything_is_read(
    file: Path, settings: Settings, rules: Path, condition: str, error: type[Exception], sentence: str
) -> None:
    (rules / "odd.sql").write_text(f"-- code: odd\n{HEADER}{condition}\n")
    dropping = settings.model_copy(update={"dropped_fields": "ip"})
    with pytest.raises(error, match=sentence):
        backtest_of(file, rules=rules, settings=dropping)
    with pytest.raises(RuleFileError, match="cannot be read"):
        backtest_of(file, rules=file.with_name("nowhere"), settings=settings)
