"""Secrets: no program shows the value of a setting that may hold one."""

import traceback
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from agents.failures import described
from pipeline.cli import COMMANDS, main
from pipeline.kafka.session.quarantine import ProcessDied
from pipeline.observability.error_text import explained
from pipeline.settings import Settings
from pipeline.state.errors import UnusableAddress
from pipeline.state.objects import ObjectStore, open_object_store, shown_url
from pipeline.state.snapshots import SnapshotRepository

SECRET = "marked-for-this-test"
ARGUMENTS = {
    "backtest": ["--reported", "frauds-only"],
    "inspect": ["transactions", "0", "0"],
    "label": ["t-1", "fraud", "--source", "analyst"],
    "simulate": ["file.parquet", "--days", "1"],
    "export": ["directory"],
    "replay": [__file__],
    "models": ["list"],
    "pace": ["--budget-per-day", "10"],
    "train": ["--from-topics"],
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_command_shows_a_secret_of_its_settings(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAUD_PIPELINE_KAFKA_CONFIG", f'{{"sasl.password": ["{SECRET}"]}}')
    monkeypatch.setenv("FRAUD_PIPELINE_AUDIT_KEYS", f'{{"a": ["{SECRET}"]}}')
    monkeypatch.setenv("FRAUD_PIPELINE_SNAPSHOT_URL", f"sftp://worker:{SECRET}@127.0.0.1:1/snapshots")
    monkeypatch.setenv("FRAUD_PIPELINE_METRICS_PORT", SECRET)
    result = CliRunner().invoke(main, [command, *ARGUMENTS.get(command, [])])
    raised = "".join(traceback.format_exception(result.exception)) if result.exception is not None else ""
    assert SECRET not in result.output + raised


def test_settings_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        kafka_config={"sasl.password": SECRET},
        audit_keys={"a": SECRET},
        snapshot_url=f"sftp://worker:{SECRET}@host/snapshots",
    )
    assert SECRET not in repr(settings) + str(settings)
    monkeypatch.setenv("FRAUD_PIPELINE_KAFKA_CONFIG", f'{{"sasl.password": ["{SECRET}"]}}')
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "sasl.password" in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"sftp://worker:{SECRET}@host/snapshots", "sftp://***@host/snapshots"),
        (f"s3://bucket/x?key={SECRET}", "s3://bucket/x?***"),
        (f"simplecache::ftp://me:a@{SECRET}@host/x", "simplecache::ftp://***@host/x"),
        ("/var/lib/snapshots", "/var/lib/snapshots"),
    ],
)
def test_an_address_is_shown_without_credentials(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_snapshots_show_their_address_without_credentials() -> None:
    assert SnapshotRepository(f"memory://worker:{SECRET}@host/x").url == "memory://***@host/x"


class Refusing:
    """A file system whose errors repeat how it was called."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def cat_file(self, path: str) -> bytes:
        raise self._error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError(f"login worker {SECRET} failed"), OSError),
        (FileNotFoundError(f"ftp://worker:{SECRET}@host/x is missing"), FileNotFoundError),
        (PermissionError(13, f"refused {SECRET}"), PermissionError),
    ],
)
def test_errors_of_a_file_system_do_not_repeat_the_password(error: Exception, kind: type[OSError]) -> None:
    with pytest.raises(kind) as raised:
        ObjectStore(Refusing(error), "x", [SECRET]).read("name")
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert raised.value.errno == getattr(error, "errno", None)


@pytest.mark.parametrize(("scheme", "why"), [("nosuch", "nosuch"), ("oci", "Install ocifs")])
def test_a_file_system_that_is_not_there_is_named_without_the_password(scheme: str, why: str) -> None:
    with pytest.raises(UnusableAddress, match=why) as raised:
        open_object_store(f"{scheme}://worker:{SECRET}@host/x")
    assert explained(raised.value) == str(raised.value)
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_the_log_of_a_failing_record_does_not_hold_its_values() -> None:
    assert described(KeyError("card-4711")) == "KeyError (see topic control)"
    assert described(ProcessDied("3 processes died")) == "3 processes died"
