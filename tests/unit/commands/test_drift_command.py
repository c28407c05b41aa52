"""``fraud-pipeline drift`` on exported files: what it prints, its exit codes, and what it refuses."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.commands.drift import DRIFTED, DriftMetrics
from pipeline.features.catalogue import DEFAULT_FEATURES, KERNEL_VERSION
from pipeline.monitoring.daily import ALERTS, REPORT_AGE, REPORT_SCORE, REPORTS
from pipeline.monitoring.drift import judge
from pipeline.monitoring_data.drift import Monitored, count_files
from pipeline.scoring.distributions import FeatureDistribution
from pipeline.scoring.lightgbm_model import Calibration, LightGBMModel
from schemas.codec import encode
from schemas.messages import Alert
from schemas.topics import ALERTS as ALERTS_TOPIC
from schemas.topics import DECISION_FEATURES, EXAMPLES
from tests.helpers.drifting import ROWS, drifting_blocks
from tests.helpers.exported import export
from tests.helpers.logs import after, golden
from tests.helpers.models import example, small_model

DAYS = 32


def exported(directory: Path, drifts_from: int, days: int = DAYS, kernel: str = KERNEL_VERSION) -> Path:
    export(directory, DECISION_FEATURES, [value for value, _ in drifting_blocks(range(days), drifts_from, kernel)])
    return directory


def alert_at(day: float) -> bytes:
    return encode(golden("alert", Alert, event_time=after(day)))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Run":
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    return Run()


class Run:
    def __call__(self, *arguments: object) -> Result:
        return CliRunner().invoke(main, ["drift", *map(str, arguments)])


def test_features_of_another_kernel_are_left_out(tmp_path: Path, run: Run) -> None:
    result = run("--file", exported(tmp_path, DAYS - 2, kernel="another"))
    assert result.exit_code == 0, result.output
    assert "0 whole days are counted" in result.output


def test_drift_is_named_with_day_values_and_exit_code(tmp_path: Path, run: Run) -> None:
    result = run("--file", exported(tmp_path, DAYS - 2))
    assert result.exit_code == DRIFTED, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith(": drift in 1")
    # The block's last decision comes in the evening: the day is not over before the next one begins.
    newest = f"{after(DAYS - 2):%Y-%m-%d}"
    assert [line.split()[:3] for line in lines if "amount" in line] == [[newest, "amount", newest]]
    assert "share of no value: 0.0% -> 33.3%" in result.stdout


def test_without_drift_it_says_so_and_ends_with_0(tmp_path: Path, run: Run) -> None:
    directory = exported(tmp_path, DAYS + 1)
    result = run("--file", directory)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("no drift on the newest two days\n")
    assert json.loads(run("--file", directory, "--json").stdout)["drift"] is False


def test_json_holds_what_is_printed(tmp_path: Path, run: Run) -> None:
    result = run("--file", exported(tmp_path, DAYS - 2), "--json")
    assert result.exit_code == DRIFTED
    reported = json.loads(result.stdout)
    assert reported["drift"] is True
    (found,) = reported["findings"]
    assert (found["name"], found["bin"], found["now"]) == ("amount", "no value", pytest.approx(1 / 3))
    assert reported["days"] == [{"day": found["day"], "findings": [found]}]


def test_too_short_a_history_is_reported_with_what_is_needed(tmp_path: Path, run: Run) -> None:
    result = run("--file", exported(tmp_path, 99, days=10))
    assert result.exit_code == 0
    assert result.stdout == "No day can be assessed yet: 9 whole days are counted, 28 and one more are needed.\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--file", "."), "fraud-pipeline export"),
        (("--file", ".", "--follow"), "leave out --follow"),
        (("--file", ".", "--lightgbm", "0123456789ab"), "has no lightgbm version 0123456789ab"),
        ((), "No embedded broker runs"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert why in result.output
    assert "Traceback" not in result.output


def test_alerts_and_reports_of_the_export_are_counted(tmp_path: Path) -> None:
    directory = exported(tmp_path, 99, days=4)
    export(directory, ALERTS_TOPIC, [alert_at(1), alert_at(1.5), b"no JSON"])
    frauds = [example(0, event_time=after(0), known_at=after(2.5)), example(5, event_time=after(1), known_at=after(2))]
    export(directory, EXAMPLES, [encode(fraud) for fraud in [*frauds, example(1)]])
    monitored = Monitored(None)
    count_files(directory, monitored)
    found = {history.name: history for history in monitored.counts.histories()}
    assert found[ALERTS].counts[:, 1].tolist() == [0.0, 2.0, 0.0]
    assert found[REPORTS].counts[:, 1].tolist() == [0.0, 0.0, 2.0]
    assert found[REPORT_AGE].counts[2].sum() == found[REPORT_SCORE].counts[2].sum() == 2
    assert found["amount"].counts.sum() == 3 * ROWS


def test_only_features_that_the_trees_ask_for_are_watched() -> None:
    trees = small_model()
    shares = trees.gain_shares
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["amount"] > 0.1
    assert "merchant_std_30d" not in shares or shares["merchant_std_30d"] < 0.05
    names = [*shares, "merchant_min_1h"]
    distributions = tuple(
        FeatureDistribution(name=name, edges=(1.0,), counts=(1.0, 1.0, 0.0)) for name in dict.fromkeys(names)
    )
    model = LightGBMModel(trees._text, Calibration(), distributions=distributions)
    monitored = Monitored(model)
    assert monitored.importance == shares
    assert {distribution.name for distribution in monitored.counts._distributions} == shares.keys()


def test_gauges_show_the_newest_day(tmp_path: Path) -> None:
    monitored = Monitored(None)
    count_files(exported(tmp_path, DAYS - 2), monitored)
    metrics = DriftMetrics()
    metrics.show_drift([], {})
    days = judge(monitored.counts.histories(), monitored.importance)
    metrics.show_drift(days, monitored.importance)

    def value(name: str, **labels: str) -> float | None:
        found = metrics.registry.get_sample_value(f"fraud_pipeline_{name}", labels)
        return None if found is None else float(found)

    assert value("drift_alarm", series="amount") == 1.0
    assert value("drift_alarm", series="hour") == 0.0
    assert value("drift_importance", series="amount") == pytest.approx(1 / len(DEFAULT_FEATURES))
    assert value("drift_importance", series="score") == 1.0
    assert (value("drift_p_value", series="amount") or 1.0) < 1e-6
    assert value("drift_day_timestamp_seconds") == after(DAYS - 2).timestamp()
    metrics.show_drift([days[-3]._replace(p_values={"hour": 0.5}, findings=())], monitored.importance)
    assert value("drift_alarm", series="amount") is None
    assert value("drift_alarm", series="hour") == 0.0
