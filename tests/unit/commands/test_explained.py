"""Failures of commands: one sentence, an exit code, no value that may be a secret."""

import errno
import json
import logging
from collections.abc import Mapping

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import LazyGroup, main
from pipeline.observability.logs import configure_logging, logging_config
from pipeline.settings import Settings
from tests.helpers.worker import inherited_environment

SECRET = "hunter2-hunter2"
NOWHERE = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}


def run(*arguments: str, **environment: str) -> Result:
    cleared = dict.fromkeys(name for name in inherited_environment() if name.startswith("FRAUD_PIPELINE_"))
    return CliRunner().invoke(main, arguments, env={**cleared, **environment})


def check_one_sentence(result: Result, *parts: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert len(result.output.strip().splitlines()) == 1, result.output
    for unwanted in ("Traceback", "http", SECRET, "input_value"):
        assert unwanted not in result.output
    for part in parts:
        assert part in result.output


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        ({"FRAUD_PIPELINE_CARD_PARTITIONS": SECRET}, ["FRAUD_PIPELINE_CARD_PARTITIONS", "integer"]),
        ({"FRAUD_PIPELINE_REGISTRY_DIR": "s3://b/x"}, ["FRAUD_PIPELINE_REGISTRY_DIR", "no URL: name one on its disk"]),
        ({"FRAUD_PIPELINE_CARD_PARTITIONS": "0"}, ["FRAUD_PIPELINE_CARD_PARTITIONS", "greater than or equal to 1"]),
        ({"FRAUD_PIPELINE_KAFKA_CONFIG": f'{{"sasl.password": {SECRET}'}, ["FRAUD_PIPELINE_KAFKA_CONFIG", "JSON"]),
        (
            {"FRAUD_PIPELINE_KAFKA_CONFIG": json.dumps({"sasl.password": {"is": SECRET}})},
            ["FRAUD_PIPELINE_KAFKA_CONFIG"],
        ),
        (
            {"FRAUD_PIPELINE_KAFKA_CONFIG": json.dumps({"sasl.pasword": SECRET})},
            ["FRAUD_PIPELINE_KAFKA_CONFIG", 'No such configuration property: "sasl.pasword"'],
        ),
        (
            {"FRAUD_PIPELINE_KAFKA_CONFIG": json.dumps({"security.protocol": SECRET})},
            ["FRAUD_PIPELINE_KAFKA_CONFIG", "security.protocol"],
        ),
        (
            {"FRAUD_PIPELINE_KAFKA_CONFIG": json.dumps({"security.protocol": "sasl_ssl", "sasl.mechanism": SECRET})},
            ["FRAUD_PIPELINE_KAFKA_CONFIG", "Unsupported SASL mechanism: its value"],
        ),
        (
            {"FRAUD_PIPELINE_KAFKA_CONFIG": json.dumps({"security.protocol": "ssl", "ssl.key.location": SECRET})},
            ["ssl.key.location names a file that is missing"],
        ),
        (
            {"FRAUD_PIPELINE_LABEL_TOPICS": '{"labels": []}'},
            ["FRAUD_PIPELINE_LABEL_TOPICS cannot be used: topic labels has no sources"],
        ),
        (
            {"FRAUD_PIPELINE_RIVER_CLASSIFIER": "river.naive_bayes.GaussianNB"},
            ["FRAUD_PIPELINE_RIVER_CLASSIFIER needs signatures", "set FRAUD_PIPELINE_SIGNING_KEY_FILE, or leave it"],
        ),
        ({"FRAUD_PIPELINE_AUDIT_KEYS": f'["{SECRET}"]'}, ["FRAUD_PIPELINE_AUDIT_KEYS"]),
        ({"FRAUD_PIPELINE_LOG_LEVELS": "loud"}, ["FRAUD_PIPELINE_LOG_LEVELS"]),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_without_its_value(
    environment: Mapping[str, str], parts: list[str]
) -> None:
    check_one_sentence(run("topics", **{**NOWHERE, **environment}), *parts)


@pytest.mark.parametrize(
    "url",
    [
        *("http://a..b/", "http://host/ä", "http://[::1/", "http://ho st/", "http:///path", "ftp://host/"),
        *("http://host:99999/", "http://host:0/", "http://host:x/", f"http://{'a' * 64}.example/"),
        f"https://user:{SECRET}@host/",
    ],
)
def test_an_address_that_no_webhook_can_be_sent_to_is_refused(url: str) -> None:
    check_one_sentence(
        run("webhook", FRAUD_PIPELINE_WEBHOOK_URL=url),
        "FRAUD_PIPELINE_WEBHOOK_URL cannot be used: it should be a web address in ASCII",
    )


@pytest.mark.parametrize("url", ["", "https://h.example/a?sig=a%2Fb#c", "http://127.0.0.1:80", "http://[::1]:8080/x"])
def test_an_address_of_a_webhook_is_taken_as_it_is(url: str) -> None:
    assert Settings(webhook_url=url).webhook_url == url


def failing(error: Exception) -> click.Group:
    group = LazyGroup("program", lazy={})
    command = click.Command("fails", callback=lambda: (_ for _ in ()).throw(error))
    group.get_command = lambda ctx, name: command  # type: ignore[method-assign, assignment]
    return group


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left on device: free space"),
        (MemoryError(), "no memory left"),
        (KeyError(SECRET), "KeyError in "),
        (ZeroDivisionError(SECRET), "This is an error of the program"),
    ],
)
def test_any_failure_of_a_command_is_one_sentence(error: Exception, part: str) -> None:
    check_one_sentence(CliRunner().invoke(failing(error), ["fails"]), part)


def test_the_traceback_of_an_error_of_the_program_is_there_for_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_LOG_LEVELS", "debug")
    shown = CliRunner().invoke(failing(KeyError("lost \x1b[2J")), ["fails"]).output
    assert shown.startswith("Traceback")
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("FRAUD_PIPELINE_TOPICS_PREFIX", "FRAUD_PIPELINE_TOPIC_PREFIX"),
        ("FRAUD_PIPELINE_METRIC_PORT", "FRAUD_PIPELINE_METRICS_PORT"),
        ("FRAUD_PIPELINE_SNAPSHOT_URL_FIEL", "FRAUD_PIPELINE_SNAPSHOT_URL_FILE"),
        ("FRAUD_PIPELINE_X", ""),
    ],
)
def test_a_misspelt_variable_is_warned_about_by_name(variable: str, nearest: str) -> None:
    result = run("acl", **{variable: SECRET})
    assert result.exit_code == 0
    advice = f": do you mean {nearest}?" if nearest else ""
    assert result.stderr == f"Warning: {variable} is no setting, and is ignored{advice}\n"


def test_variables_of_kubernetes_and_settings_are_not_warned_about() -> None:
    given = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "9464",
        "SERVICE_PORT_METRICS": "9464",
        "PORT": "tcp://10.0.0.1:9464",
        "PORT_9464_TCP": "tcp://10.0.0.1:9464",
        "PORT_9464_TCP_ADDR": "10.0.0.1",
        "RETRAIN_SERVICE_HOST": "10.0.0.1",
        "topic_prefix": "x-",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    }
    result = run("acl", **{f"FRAUD_PIPELINE_{name}": value for name, value in given.items()})
    assert (result.exit_code, result.stderr) == (0, "")


def test_each_log_line_is_a_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    try:
        configure_logging(Settings(log_format="json", log_levels="info,pipeline.kafka.librdkafka=error"))
        logging.getLogger("pipeline.anything").info("%d é\nlines", 2)
        logging.getLogger("pipeline.kafka.librdkafka").warning("not told")
        logging.getLogger("mode.services").info("not told")
        try:
            raise ValueError("of no use")
        except ValueError:
            logging.getLogger("faust.pipeline").exception("crashed")
    finally:
        root.handlers[:] = before[1]
        root.setLevel(before[0])
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("info", "pipeline.anything", "2 é\nlines")
    assert first["time"].endswith("Z")
    assert (second["error"], second["message"]) == ("ValueError", "crashed")
    assert "of no use" in second["traceback"]


def test_the_option_of_a_worker_wins_over_the_setting() -> None:
    config = logging_config(Settings(log_levels="error,faust=debug"), "debug")
    assert config["root"]["level"] == "DEBUG"
    assert config["loggers"]["faust"]["level"] == "DEBUG"
