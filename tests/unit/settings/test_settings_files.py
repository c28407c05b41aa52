"""Settings that come from files."""

from pathlib import Path

import pytest
from pydantic_settings import SettingsError

from pipeline.settings import Settings


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "kafka.json"
    path.write_text('{"sasl.username": "file", "sasl.password": "geheim"}\n')
    return path


def test_objects_of_a_file_and_of_the_variable_are_merged(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_KAFKA_CONFIG_FILE", str(secret))
    monkeypatch.setenv("FRAUD_PIPELINE_KAFKA_CONFIG", '{"sasl.username": "variable"}')
    assert Settings().kafka_config == {"sasl.username": "variable", "sasl.password": "geheim"}


def test_the_end_of_a_file_s_line_is_no_part_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "url"
    path.write_text("s3://key:secret@bucket\n")
    monkeypatch.setenv("FRAUD_PIPELINE_SNAPSHOT_URL_FILE", str(path))
    assert Settings().snapshot_url == "s3://key:secret@bucket"
    monkeypatch.setenv("FRAUD_PIPELINE_SNAPSHOT_URL", "")
    assert Settings().snapshot_url == ""


def test_a_file_that_cannot_be_read_is_named_and_its_content_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kafka.json"
    monkeypatch.setenv("FRAUD_PIPELINE_KAFKA_CONFIG_FILE", str(path))
    with pytest.raises(SettingsError, match=r"KAFKA_CONFIG_FILE names .*kafka\.json, which cannot be read: No such"):
        Settings()
    path.write_text("geheim")
    with pytest.raises(SettingsError, match="no JSON object") as refused:
        Settings()
    assert "geheim" not in str(refused.value)
