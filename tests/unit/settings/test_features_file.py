"""A file of features declares numbers of producers, or is refused in a sentence by every program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.features.attributes import Attribute
from pipeline.features.catalogue import FEATURES
from pipeline.settings.features_file import FeaturesError, read_features_file
from tests.helpers.declared_attributes import FEATURE_NAMES, declaration
from tests.helpers.worker import ROOT

FILE = b"""\
# Of our devices.
[fields.device_risk]
type = "number"
meaning = "risk score of the device"

[fields."basket"]
type = "number"
meaning = "goods in the basket"
"""


def test_fields_become_attributes_in_their_order() -> None:
    assert read_features_file(FILE, "f") == [
        Attribute("device_risk", "risk score of the device"),
        Attribute("basket", "goods in the basket"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "saying"),
    [
        ("type", "typ", "f, line 2: [fields.device_risk]: there is no typ; did you mean type?"),
        ("type", "sort", "f, line 2: [fields.device_risk]: there is no sort; there are type, meaning"),
        ('"number"', '"text"', 'f, line 2: [fields.device_risk]: write type = "number"; models read no other type'),
        ('meaning = "goods in the basket"', "", "f, line 6: [fields.basket]: give it a meaning"),
        ("goods", "a\\nb", "give it a meaning of at most 100 characters"),
        ("goods", "g" * 200, "give it a meaning of at most 100 characters"),
        ("device_risk", "device-risk", "f, line 2: [fields.device-risk]: a name has at most 64 ASCII letters"),
        ("device_risk", '"größe"', "a name has at most 64 ASCII letters"),
        ("device_risk", "x" * 65, "a name has at most 64 ASCII letters"),
        ('"basket"', "device_risk", "f: it is no TOML: Cannot declare ('fields', 'device_risk') twice (at line 6"),
        ("[fields.device_risk]", "[[features]]", "there is no features; only fields can be declared"),
        ("[fields.device_risk]", "[fields]\ndevice_risk = 1\n[other]", "there is no other"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(old: str, new: str, saying: str) -> None:
    text = FILE.decode()
    assert old in text
    with pytest.raises(FeaturesError) as refused:
        read_features_file(text.replace(old, new, 1).encode(), "f")
    assert saying in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff", b"fields = 1", b"a = " + b"[" * 50_000, b"#" * 70_000, b"[fields]\na = 1",
        b"".join(b"[fields.f%d]\n" % number for number in range(101)), b"[fields." + b"x" * 60_000 + b"]",
    ],
)  # fmt: skip
def test_hostile_files_are_refused(content: bytes) -> None:
    with pytest.raises(FeaturesError) as refused:
        read_features_file(content, "f")
    assert len(str(refused.value)) < 300


def printed(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "FRAUD_PIPELINE_FEATURES_FILE": str(file)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_program_has_them(tmp_path: Path) -> None:
    file = tmp_path / "features.toml"
    file.write_text(declaration())
    listed = printed(file, "-m", "pipeline.cli", "features", "list").stdout
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("attribute_")] == [*FEATURE_NAMES]
    code = "from pipeline.features.catalogue import FEATURES; print(*FEATURES)"
    assert {*printed(file, "-c", code).stdout.split()} == {*FEATURES, *FEATURE_NAMES}
    checked = CliRunner().invoke(main, ["features", "check", str(file)])
    assert [line for line in checked.output.splitlines() if not line.startswith(" ")] == [
        f"{name} (number)" for name in FEATURE_NAMES
    ]


@pytest.mark.parametrize("program", [("-m", "pipeline.cli", "--help"), ("-m", "faust", "-A", "agents.app", "worker")])
def test_no_program_starts_with_a_wrong_file(program: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "features.toml"
    file.write_bytes(FILE.replace(b"number", b"text"))
    for named in (file, tmp_path / "absent.toml"):
        done = printed(named, *program)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 1
