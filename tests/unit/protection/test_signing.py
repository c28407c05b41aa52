"""Signatures: what no trusted key signed is refused and counted, and reading goes on."""

import base64
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from pipeline.cli import LazyGroup
from pipeline.engine.feedback.learn import model_record
from pipeline.kafka.records.internal import TrustedRecords, not_counted
from pipeline.kafka.session.quarantine import control_record, decode_control
from pipeline.models.contents import sound_versions
from pipeline.protection.signing import SIGNATURE, KeyFileError, Signer, Trust, snapshot_keys
from pipeline.settings import Settings
from pipeline.state.manifest import MANIFEST_SUFFIX
from pipeline.state.snapshots import Refused, SnapshotRepository, UnusableReason
from schemas.messages import LearningSwitch
from schemas.records import Output, Record
from tests.helpers.snapshots import KEY, dump_at, positions_at

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def key_pair(directory: Path, name: str) -> tuple[Path, Path]:
    """Write a new key pair; returns the private and the public file."""
    key = Ed25519PrivateKey.generate()
    private, public = directory / f"{name}.pem", directory / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    public.chmod(0o644)
    return private, public


def keyed(deployment: str = "test", **fields: Any) -> Settings:
    """Return settings of a deployment with keys."""
    return Settings(deployment=deployment, **fields)


def record(output: Output, settings: Settings, offset: int = 0, signer: Settings | None = None) -> Record:
    """Return what a program with the settings of ``signer`` writes."""
    topic = settings.topic(output.topic.name)
    headers = output.headers if signer is None else Signer.from_settings(signer).headers(output, topic)
    return Record(topic, 0, offset, 0, output.key, output.value, headers)


def switch(reason: str = "test") -> Output:
    return control_record(LearningSwitch(frozen=True, by="dana", reason=reason, switched_at=NOW))


def reasons(settings: Settings, *records: Record) -> tuple[list[str], int]:
    """Return the reasons of the switches that a reader believes, and how many records it refused."""
    refused: Counter[str] = Counter()
    trusted = TrustedRecords(settings, lambda topic: refused.update([topic]))
    found = [item.reason for _, item in trusted.readable(records, decode_control) if isinstance(item, LearningSwitch)]
    return found, refused.total()


@pytest.fixture
def signing(tmp_path: Path) -> tuple[Settings, Settings]:
    """Settings of a deployment, and of somebody with a key of his own."""
    return (
        keyed(signing_key_file=key_pair(tmp_path, "own")[0], topic_prefix="x-"),
        keyed(signing_key_file=key_pair(tmp_path, "other")[0], topic_prefix="x-"),
    )


def test_without_keys_all_records_are_read_and_none_is_signed() -> None:
    settings = Settings()
    unsigned = record(switch(), settings, signer=settings)
    assert unsigned.headers == ()
    assert reasons(settings, unsigned) == (["test"], 0)


def test_only_what_a_trusted_key_signed_is_read(signing: tuple[Settings, Settings]) -> None:
    own, other = signing
    good = record(switch("good"), own, 0, own)
    changed = Record(good.topic, 0, 1, 0, good.key, (good.value or b"").replace(b"good", b"evil"), good.headers)
    moved = Record("x-models", 0, 2, 0, good.key, good.value, good.headers)
    garbled = Record(good.topic, 0, 3, 0, good.key, good.value, ((SIGNATURE, b"\xff:\xff"),))
    empty = Record(good.topic, 0, 4, 0, good.key, good.value, ((SIGNATURE, None),))
    forged = [changed, moved, garbled, empty, record(switch("u"), own, 5), record(switch("o"), own, 6, other)]
    assert reasons(own, *forged, good) == (["good"], len(forged))


def test_models_need_a_signature_too(signing: tuple[Settings, Settings]) -> None:
    own, other = signing
    output = model_record("policy", "0" * 12, b"{}", NOW)
    records = [record(output, own, 0), record(output, own, 1, other), record(output, own, 2, own)]
    found = sound_versions(records, TrustedRecords(own, not_counted))
    assert [record.offset for record, _ in found] == [2]


def test_a_copy_of_a_signed_record_does_not_count_again(signing: tuple[Settings, Settings]) -> None:
    own, _ = signing
    first, again = record(switch("old"), own, 3, own), record(switch("old"), own, 9, own)
    newer = record(switch("new"), own, 5, own)
    assert reasons(own, first, newer, again) == (["old", "new"], 1)
    # A reader may come to the same record again.
    assert reasons(own, first, first) == (["old", "old"], 0)


def test_a_copy_with_another_spelling_of_its_signature_does_not_count(
    signing: tuple[Settings, Settings],
) -> None:
    own, _ = signing
    first = record(switch("old"), own, 3, own)
    ((_, signature),) = first.headers
    assert signature is not None
    key_id, digits, name = signature.split(b":")
    # Two bits of the last digit before the padding mean nothing.
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    spelt = b":".join((key_id, digits[:-3] + alphabet[alphabet.index(digits[-3:-2]) ^ 1 :][:1] + b"==", name))
    copies = [
        Record(first.topic, 0, 9, 0, first.key, first.value, ((SIGNATURE, spelt),)),
        Record(first.topic, 0, 10, 0, first.key, first.value, ((SIGNATURE, signature), (SIGNATURE, b"another"))),
    ]
    assert reasons(own, first, *copies) == (["old"], 2)


def test_keys_are_rotated_by_trusting_several(tmp_path: Path) -> None:
    (old, old_public), (new, new_public) = key_pair(tmp_path, "old"), key_pair(tmp_path, "new")
    before, after = (
        keyed(signing_key_file=old),
        keyed(signing_key_file=new, trusted_keys=f"{old_public}"),
    )
    records = [record(switch("old"), before, 0, before), record(switch("new"), before, 1, after)]
    assert reasons(after, *records)[0] == ["old", "new"]
    assert reasons(keyed(trusted_keys=f"{new_public}, {old_public}"), *records)[0] == [
        "old",
        "new",
    ]
    assert reasons(keyed(signing_key_file=new), *records)[0] == ["new"]


def test_records_from_before_signatures_count_by_their_offset(signing: tuple[Settings, Settings]) -> None:
    own = signing[0].model_copy(update={"unsigned_below": {"control": 2}})
    records = [record(switch(str(offset)), own, offset) for offset in range(4)]
    assert reasons(own, *records) == (["0", "1"], 2)


def test_a_signature_counts_in_the_deployment_that_it_names(tmp_path: Path) -> None:
    own, _ = key_pair(tmp_path, "own")
    staging, production = (keyed(name, signing_key_file=own) for name in ("staging", "production"))
    foreign = record(switch("foreign"), production, 0, staging)
    assert Trust.from_settings(production).refusal(foreign) == "it is signed for deployment 'staging', not 'production'"
    ((_, header),) = foreign.headers
    renamed = Record("control", 0, 1, 0, b"", foreign.value, ((SIGNATURE, (header or b"")[:-7] + b"production"),))
    assert Trust.from_settings(production).refusal(renamed) == "its signature is wrong"
    assert reasons(production, foreign, renamed, record(switch("own"), production, 2, production)) == (["own"], 2)
    with pytest.raises(ValidationError, match="set FRAUD_PIPELINE_DEPLOYMENT"):
        Settings(signing_key_file=own)


def test_signatures_of_earlier_releases_count_by_their_offset(tmp_path: Path) -> None:
    own, _ = key_pair(tmp_path, "own")
    settings = keyed(signing_key_file=own, unnamed_below={"control": 2})
    key = load_pem_private_key(own.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)

    def earlier(offset: int, reason: str) -> Record:
        output = switch(reason)
        signature = base64.b64encode(key.sign(b"fraud-pipeline\0control\0" + (output.value or b"")))
        header = (SIGNATURE, Signer.from_settings(settings).key_id.encode() + b":" + signature)
        return Record("control", 0, offset, 0, b"", output.value, (header,))

    unsigned = record(switch("unsigned"), settings, 1)
    assert reasons(settings, earlier(0, "old"), unsigned, earlier(2, "late")) == (["old"], 2)
    assert "no deployment's name" in (Trust.from_settings(settings).refusal(earlier(2, "late")) or "")


def test_keys_of_files_are_checked(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "one")
    with pytest.raises(KeyFileError, match="cannot be read"):
        Signer.from_settings(keyed(signing_key_file=tmp_path / "none.pem"))
    public.chmod(0o600)
    with pytest.raises(KeyFileError, match="no private Ed25519 key"):
        Signer.from_settings(keyed(signing_key_file=public))
    with pytest.raises(KeyFileError, match="no public Ed25519 key"):
        Trust.from_settings(keyed(trusted_keys=str(private)))
    with pytest.raises(KeyFileError, match="FRAUD_PIPELINE_SIGNING_KEY_FILE"):
        Signer.from_settings(keyed(trusted_keys=str(public)))
    for mode in (0o640, 0o604, 0o620):
        private.chmod(mode)
        with pytest.raises(KeyFileError, match="chmod 600"):
            Signer.from_settings(keyed(signing_key_file=private))


def test_a_public_key_that_others_may_change_is_refused(tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "one")
    for mode in (0o664, 0o646):
        public.chmod(mode)
        with pytest.raises(KeyFileError, match="choose whom to trust"):
            Trust.from_settings(keyed(trusted_keys=str(public)))


def test_a_key_of_an_unknown_kind_is_refused_in_one_sentence(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "one")
    for path, kind in ((private, "PRIVATE"), (public, "PUBLIC")):
        der = base64.b64decode("".join(path.read_text().splitlines()[1:-1])).replace(b"+ep", b"+es")
        path.write_text(f"-----BEGIN {kind} KEY-----\n{base64.b64encode(der).decode()}\n-----END {kind} KEY-----\n")
    with pytest.raises(KeyFileError, match="no private Ed25519 key"):
        Signer.from_settings(keyed(signing_key_file=private))
    with pytest.raises(KeyFileError, match="no public Ed25519 key"):
        Trust.from_settings(keyed(trusted_keys=str(public)))


def test_a_command_names_the_key_that_it_cannot_use(tmp_path: Path) -> None:
    @click.command()
    def command() -> None:
        Signer.from_settings(keyed(signing_key_file=tmp_path / "none.pem"))

    group = LazyGroup(lazy={})
    group.get_command = lambda ctx, name: command  # type: ignore[method-assign,assignment]
    result = CliRunner().invoke(group, ["any"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "none.pem cannot be read" in result.output


def test_a_configured_classifier_needs_signatures(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="RIVER_CLASSIFIER needs signatures"):
        Settings(river_classifier="river.naive_bayes.GaussianNB")
    Settings(
        river_classifier="river.naive_bayes.GaussianNB",
        deployment="test",
        signing_key_file=key_pair(tmp_path, "one")[0],
    )


def secret_file(directory: Path, name: str) -> str:
    path = directory / name
    path.write_text(name * 32)
    path.chmod(0o600)
    return str(path)


def test_snapshots_that_no_key_signed_are_not_used(tmp_path: Path) -> None:
    file, two = secret_file(tmp_path, "1"), secret_file(tmp_path, "2")
    old = snapshot_keys(Settings(snapshot_keys=file))
    rotated = snapshot_keys(Settings(snapshot_keys=f"{two}, {file}"))
    new = snapshot_keys(Settings(snapshot_keys=two))
    refused: list[Refused] = []

    def repository(root: str, keys: tuple[bytes, ...]) -> SnapshotRepository:
        return SnapshotRepository(str(tmp_path / root), keys=keys, on_refused=refused.append, pauses_s=())

    def newest(root: str, keys: tuple[bytes, ...]) -> bool:
        refused.clear()
        return repository(root, keys).newest(KEY, positions_at(1), tmp_path / "scratch") is not None

    for root, keys in (("signed", old), ("unsigned", ())):
        repository(root, keys).writer(KEY, None).write(positions_at(1), 1, dump_at(1))
    assert newest("signed", old)
    assert newest("signed", rotated)
    assert newest("unsigned", ())
    # What another key signed is not damaged: where a state cannot be made without it, a worker must not start.
    for root, keys in (("signed", new), ("signed", ()), ("unsigned", old)):
        assert not newest(root, keys)
        assert [item.reason for item in refused] == [UnusableReason.UNSIGNED]
    (manifest,) = (tmp_path / "signed").rglob(f"*{MANIFEST_SUFFIX}")
    manifest.write_bytes(manifest.read_bytes().replace(b'"created_at":"2', b'"created_at":"3'))
    assert not newest("signed", old)
    assert [item.reason for item in refused] == [UnusableReason.DAMAGED]


def test_a_key_of_snapshots_is_long_and_private(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="openssl rand"):
        snapshot_keys(Settings(snapshot_keys=str(path)))
    path.write_text("x" * 64)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        snapshot_keys(Settings(snapshot_keys=str(path)))
