"""The command: what it writes and says, how it ends early, and that its page tells all of its options."""

import errno
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from pipeline import Backtest
from pipeline.backtest.input.order import Order
from pipeline.backtest.input.span import RangeError
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.report import BacktestReport
from pipeline.backtest.runner import live_comparison as live
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.cli import main
from pipeline.commands import backtest
from pipeline.commands.backtest import command
from pipeline.history.files import file_tables
from pipeline.models.registry import Registry
from schemas.times import US_PER_DAY
from tests.helpers.backtest_inputs import START, simulated_days, with_a_champion
from tests.helpers.champion import policy
from tests.helpers.models import registered

ROOT = Path(__file__).resolve().parents[3]
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command on a file of two weeks, with a registry of its own."""
    simulated_days(14).to_parquet(tmp_path / "history.parquet", index=False)
    settings = with_a_champion(tmp_path / "data", policy(0.3))
    environment = {"FRAUD_PIPELINE_DATA_DIR": str(settings.data_dir), "KAFKA_BOOTSTRAP_SERVERS": None}

    def begin(*arguments: str, file: bool = True) -> Result:
        source = [str(tmp_path / "history.parquet")] if file else []
        return CliRunner().invoke(main, ["backtest", *source, *arguments], env=environment)

    return begin


def test_a_file_is_decided_and_reported(run: Run, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    page, content, decisions = tmp_path / "page.html", tmp_path / "content.json", tmp_path / "decisions"
    result = run(
        "--from", "2024-03-08", "--model", "now=active", "--threshold", "0.2", "--threshold", "0.6",
        "--report", str(page), "--json", str(content), "--decisions", str(decisions),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert signal.getsignal(signal.SIGINT) is before
    assert "now at 0.2" in result.stdout
    assert "it warms the windows up for" in result.stdout.replace("\n", " ")
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert json.loads(content.read_text(encoding="utf-8"))["partial"] is False
    named = json.loads((decisions / "variants.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in named] == ["now at 0.2", "now at 0.6"]
    low, high = (pd.read_parquet(decisions / f"{number}.parquet") for number in (0, 1))
    assert low["event_time"].min() >= pd.Timestamp("2024-03-08", tz="UTC")
    assert (low["action"] == "alert").sum() > (high["action"] == "alert").sum()


def test_alerts_are_reviewed_as_is_asked_for(run: Run, tmp_path: Path) -> None:
    content = tmp_path / "content.json"
    result = run("--labels", "simulated-review", "--review-delay", "36h", "--top", "2", "--json", str(content))
    assert result.exit_code == 0, result.output
    reported = json.loads(content.read_text(encoding="utf-8"))
    asked = {name: reported["parameters"][name] for name in ("labels", "label_delay_days", "review_delay_days")}
    assert asked == {"labels": "simulated-review", "label_delay_days": 7.0, "review_delay_days": 1.5}
    assert reported["parameters"]["reviews_a_day"] == reported["options"]["top"] == 2
    assert 0 < reported["variants"][0]["reviewed"]["alerts"] <= 2 * 14
    assert "alerts that were looked at" in " ".join(result.stdout.split())


def test_an_interrupt_leaves_a_partial_report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backtest.input.file_source.file_tables", in_small_tables)
    monkeypatch.setattr(backtest.ProgressBar, "show", lambda self, *_: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    content = tmp_path / "content.json"
    result = run("--json", str(content))
    assert result.exit_code == 130, result.output
    assert json.loads(content.read_text(encoding="utf-8"))["partial"] is True
    assert 0 < json.loads(content.read_text(encoding="utf-8"))["transactions"] <= 50
    assert signal.getsignal(signal.SIGINT) is before


def test_a_model_is_trained_and_kept(run: Run, tmp_path: Path) -> None:
    result = run(
        "--from", "2024-03-13", "--train", "no merchants=-merchant_*", "--train-from", "2024-03-02", "--model",
        "now=active", "--label-delay", "1d", "--validation-days", "4", "--budget", "5", "--register",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    named = re.search(r"no merchants: LightGBM (\w{12}), policy (\w{12})", result.stderr)
    assert named
    model = registered(Registry(tmp_path / "data" / "registry"), named[1])
    assert not any(name.startswith("merchant") for name in model.trained_on)
    assert "no merchants at 5 a day beside now at 5 a day" in " ".join(result.stdout.split())


def test_models_are_renewed_and_reported(run: Run) -> None:
    result = run(
        "--from", "2024-03-11", "--train", "mine", "--train-from", "2024-03-02", "--renew", "2", "--label-delay", "1d",
        "--validation-days", "3", "--train-window", "9",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    reported = re.findall(
        r"^mine every 2 days, by what was known at (\S+) 00:00:00: LightGBM \w{12}", result.stderr, re.MULTILINE
    )
    assert reported == ["2024-03-13", "2024-03-15"][: len(reported)]
    assert reported
    assert f"mine every 2 days: {1 + len(reported)} versions, by what was known from 2024-03-11" in " ".join(
        result.stdout.split()
    )


def in_small_tables(*arguments: object) -> object:
    return file_tables(*arguments, chunk_rows=50)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--from", "2031-01-01"], 1, "choose another range with --from and --to"),
        (["--from", "2024-03-08", "--to", "2024-03-08"], 1, "the range is empty"),
        (["--model", "0123456789ab"], 1, "has no lightgbm version 0123456789ab"),
        (["--compare", "live"], 1, "leave the file out"),
        (["--labels", "recorded"], 1, "no labels were recorded with history.parquet"),
        (["--labels", "guessed"], 2, "'recorded', 'delay', 'simulated-review'"),
        (["--differences", "d.csv"], 2, "add --compare live"),
        (["--model", "a=active", "--model", "a=active"], 2, "named twice"),
        (["--budget", "nan"], 2, "'nan' is no finite number"),
        (["--review-cost", "inf"], 2, "'inf' is no finite number"),
        (["--publish-every", "0"], 1, "publish_every_s must be more than 0, not 0.0"),
        (["--threshold", "0.5", "--threshold", ".5"], 1, "the threshold 0.5 is named twice"),
        (["--report", "/nonexistent/x/y.html"], 1, "cannot be written: there is no directory /nonexistent/x"),
        (["--decisions", "/proc/nope"], 1, "/proc/nope cannot be written"),
        (["--threshold", "2"], 2, "0<=x<=1"),
        (["--train", "mine"], 2, "add --train-from"),
        (["--register"], 2, "nothing is trained"),
        (["--renew", "7"], 2, "nothing is trained"),
        (["--train", "a", "--train-from", "2024-03-02", "--renew", "0"], 2, "x>0"),
        (
            ["--train", "a", "--train-from", "2024-03-02", "--renew", "1", "--budget", "5"],
            1,
            "leave --budget and --pace out",
        ),
        (["--train", "a", "--train", "a=hour", "--train-from", "2024-03-01"], 2, "needs a name of its own"),
        (["--train", "=hour", "--train-from", "2024-03-01"], 2, "needs a name of its own"),
        (["--train", "a", "--train-from", "2024-03-01"], 1, "what lies before the range"),
        (["--from", "2024-03-13", "--train", "a=colour", "--train-from", "2024-03-01"], 1, "matches no feature"),
    ],
)
def test_what_cannot_be_done_is_reported(run: Run, arguments: list[str], code: int, text: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, text in result.output.replace("\n", " ")) == (code, True), result.output


def test_outputs_are_tried_before_anything_is_decided(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backtest.Backtest, "run", lambda *_: pytest.fail("decided before the paths were tried"))
    for option in ("--report", "--json"):
        assert "cannot be written" in run(option, str(tmp_path / "no" / "such" / "file")).stderr
    file = tmp_path / "a file"
    file.touch()
    assert "cannot be written" in run("--decisions", str(file / "below")).stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a file", "data", "history.parquet"]


def test_an_output_that_fails_takes_no_other_with_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(BacktestReport, "html", property(fail))
    content = tmp_path / "content.json"
    result = run("--report", str(tmp_path / "page.html"), "--json", str(content))
    assert result.exit_code == 1
    assert f"{tmp_path / 'page.html'} was not written: No space left on device" in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert json.loads(content.read_text(encoding="utf-8"))["transactions"] > 0


def test_without_a_history_and_a_cluster_there_is_nothing_to_read(run: Run) -> None:
    result = run(file=False)
    assert result.exit_code == 1
    assert "name a file, a directory of exported topics, or a cluster" in result.output


def test_a_cluster_that_does_not_answer_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.kafka.cluster.admin.CONNECT_TIMEOUT_S", 0.2)
    result = run("--bootstrap", "127.0.0.1:1", file=False)
    assert result.exit_code == 1
    assert "no Kafka broker answers at 127.0.0.1:1" in result.output


def test_a_topic_of_decisions_is_asked_for_by_the_same_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Backtest] = []

    def keep(backtest: Backtest, *_: object, **_more: object) -> None:
        asked.append(backtest)
        raise RangeError("enough")

    monkeypatch.setattr(backtest.Backtest, "run", keep)
    monkeypatch.setattr(backtest, "reprocess", keep)
    options = [
        "--bootstrap", "127.0.0.1:1", "--from", "2024-03-08", "--to", "2024-03-10T12:00", "--warm-up", "36h",
        "--lateness", "2d", "--policy", "p", "--river", "r", "--learn", "--publish-every", "90",
        "--blend", "0.5",
    ]  # fmt: skip
    run(*options, "--model", "m", "--threshold", "0.5", file=False)
    run("--decisions", "topic:candidate", *options, "--model", "m", "--threshold", "0.5", file=False)
    ours, other = asked
    arguments, others = ({**vars(item), "settings": None, "source": None} for item in asked)
    assert arguments == others
    assert isinstance(ours.source, TopicSource)
    assert isinstance(other.source, TopicSource)
    assert (other.source.bootstrap, other.source.lateness_us) == (ours.source.bootstrap, ours.source.lateness_us)
    assert (other.source.bootstrap, other.source.lateness_us) == ("127.0.0.1:1", 2 * US_PER_DAY)
    begin_us = round(START.timestamp()) * 1_000_000 + 7 * US_PER_DAY
    assert other.span == (begin_us - 3 * US_PER_DAY // 2, begin_us, begin_us + 5 * US_PER_DAY // 2)
    assert (other.policy, other.river, other.publish_every_us, other.online.blend) == ("p", "r", 90_000_000, 0.5)
    run("--order", "recorded", "--bootstrap", "127.0.0.1:1", file=False)
    assert (ours.order, asked[-1].order) == (Order.EVENT_TIME, Order.RECORDED)


def test_the_page_tells_every_option() -> None:
    page = (ROOT / "docs/backtest.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    reported = {option for cell in cells for option in re.findall(r"`(--[a-z-]+)`", cell)}
    options = [item for item in command.params if isinstance(item, click.Option)]
    offered = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    assert reported == offered


def test_causes_of_differences_are_in_the_page() -> None:
    page = (ROOT / "docs/backtest.md").read_text(encoding="utf-8")
    causes = [
        live.RULES, live.WINDOWS, live.ARRIVAL, live.BETWEEN, *live.OTHER_VERSION.values(), live.ONLY_LIVE,
        live.ONLY_HERE, live.UNEXPLAINED,
    ]  # fmt: skip
    assert [cause for cause in causes if f"`{cause}`" not in page] == []
    assert LiveComparison().frame().empty
