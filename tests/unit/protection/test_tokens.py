"""Tokens: keyed for each value, the same for all processes, and nobody's once the key is destroyed."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from pipeline import Tokeniser
from pipeline.cli import main
from pipeline.protection.signing import KeyFileError
from pipeline.protection.tokens import NotTokenised, TokenKeys
from pipeline.settings import Settings
from schemas.codec import MAX_VALUE_BYTES

CARD = "4000001234567899"
MESSAGE = b'{"transaction_id":"t-1","card_id":"4000001234567899","ip":"10.0.0.1","amount":12.50,"extra":1e999}'
SECRET = b"s" * 32


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[TokenKeys]:
    with TokenKeys(tmp_path / "tokens.sqlite", SECRET) as made:
        yield made


def test_a_message_keeps_all_but_the_fields_that_are_replaced(keys: TokenKeys) -> None:
    tokeniser = Tokeniser(keys, ("card_id", "ip", "device_id"))
    token, value = tokeniser.message(MESSAGE)
    assert (token, len(token)) == (tokeniser.token("card_id", CARD), 32)
    address = tokeniser.token("ip", "10.0.0.1")
    assert value == MESSAGE.replace(CARD.encode(), token.encode()).replace(b"10.0.0.1", address.encode())
    # The same value of another field is something else.
    assert tokeniser.token("account_id", CARD) != token


def test_personal_attributes_are_replaced_where_they_are_texts(keys: TokenKeys) -> None:
    tokeniser = Tokeniser(keys, ("card_id",), ("shop", "holder"))
    message = b'{"card_id":"4","attributes":{"risk":0.5,"shop":"Kiosk","holder":null}}'
    token, value = tokeniser.message(message)
    shop = tokeniser.token("attributes.shop", "Kiosk")
    assert msgspec.json.decode(value) == {"card_id": token, "attributes": {"risk": 0.5, "shop": shop, "holder": None}}
    with pytest.raises(NotTokenised, match="field to tokenise is no text"):
        tokeniser.message(b'{"card_id":"4","attributes":{"shop":7}}')
    for without in (b'{"card_id":"4","attributes":null}', b'{"card_id":"4"}'):
        assert msgspec.json.decode(tokeniser.message(without)[1]) == msgspec.json.decode(without) | {"card_id": token}


def test_all_processes_give_a_value_one_token(tmp_path: Path) -> None:
    cards = [str(number) for number in range(1_200)]

    def tokens(_: int) -> list[str]:
        with TokenKeys(tmp_path / "tokens.sqlite", SECRET) as keys:
            tokeniser = Tokeniser(keys)
            found = tokeniser.many([msgspec.json.encode({"card_id": card}) for card in cards])
            return [row[0] for row in found if not isinstance(row, NotTokenised)]

    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(tokens, range(4))
    assert len(set(first)) == len(cards)
    assert all(other == first for other in others)


def test_the_database_alone_tells_nothing_of_a_value(tmp_path: Path) -> None:
    path = tmp_path / "tokens.sqlite"
    with TokenKeys(path, SECRET) as keys, TokenKeys(tmp_path / "other.sqlite", SECRET) as other:
        token = Tokeniser(keys).token("card_id", CARD)
        assert Tokeniser(other).token("card_id", CARD) != token
    files = list(tmp_path.iterdir())
    assert not any(CARD.encode() in file.read_bytes() for file in files)
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_a_database_of_another_secret_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.sqlite"
    with TokenKeys(path, SECRET) as keys:
        Tokeniser(keys).token("card_id", CARD)
        assert keys.forget(("card_id", CARD))
    # Else all cards would get other tokens, and a card that is there would be said not to be.
    with pytest.raises(KeyFileError, match="made with another secret"):
        TokenKeys(path, b"o" * 32)
    with TokenKeys(path, SECRET) as keys:
        assert not keys.forget(("card_id", CARD))


def test_a_forgotten_key_is_gone_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "tokens.sqlite"
    with TokenKeys(path, SECRET) as keys:
        token = Tokeniser(keys).token("card_id", CARD)
        key = keys.keys([("card_id", CARD)])["card_id", CARD]
        Tokeniser(keys).many([b'{"card_id":"%d"}' % number for number in range(50)])
    # Closed, it has all in one file.
    assert key in path.read_bytes()
    with TokenKeys(path, SECRET) as keys:
        assert keys.forget(("card_id", CARD))
        assert not any(key in file.read_bytes() for file in tmp_path.iterdir())
        assert not keys.forget(("card_id", CARD))
        assert Tokeniser(keys).token("card_id", CARD) != token


def test_a_copy_of_a_forgotten_key_that_another_program_holds_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens.sqlite"
    monkeypatch.setattr("pipeline.protection.tokens._BUSY_S", 0.0)
    with TokenKeys(path, SECRET) as keys:
        Tokeniser(keys).token("card_id", CARD)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM keys").fetchall()
        with pytest.raises(KeyFileError, match="forget the value again"):
            keys.forget(("card_id", CARD))
        reader.close()
        assert not keys.forget(("card_id", CARD))


def test_a_database_that_cannot_be_used_is_named_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "tokens.sqlite"
    with TokenKeys(path, SECRET) as keys:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("DROP TABLE keys")
        other.close()
        for use in (keys.forget, lambda name: keys.keys([name])):
            with pytest.raises(KeyFileError, match=r"tokens\.sqlite cannot be used: no such table"):
                use(("card_id", CARD))


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "null_value"),
        (b"\xff" + CARD.encode(), "not_utf8"),
        (b'{"card_id":"4000001234567899"', "not_json"),
        (b'["4000001234567899"]', "wrong_type"),
        (b'{"card_id":4000001234567899}', "wrong_type"),
        (b'{"pan":"4000001234567899"}', "missing_field"),
        (b'{"card_id":"","pan":"4000001234567899"}', "invalid_value"),
        (b'{"card_id":"4000001234567899","a":"' + b"x" * MAX_VALUE_BYTES + b'"}', "too_large"),
        (b'{"card_id":"4000001234567899","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not_json"),
    ],
)
def test_what_cannot_be_tokenised_is_refused_without_its_values(
    value: bytes | None, code: str, keys: TokenKeys
) -> None:
    tokeniser = Tokeniser(keys)
    with pytest.raises(NotTokenised) as refused:
        tokeniser.message(value)
    assert refused.value.code == code
    assert "4000" not in str(refused.value)
    found, good = tokeniser.many([value, MESSAGE])
    assert isinstance(found, NotTokenised)
    assert not isinstance(good, NotTokenised)


def test_files_that_others_can_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="TOKEN_SECRET_FILE"):
        TokenKeys.from_settings(Settings())
    path = tmp_path / "tokens.sqlite"
    path.touch(0o644)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        TokenKeys(path, SECRET)


def test_forget_says_what_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s" * 64)
    secret.chmod(0o600)
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FRAUD_PIPELINE_TOKEN_SECRET_FILE", str(secret))
    monkeypatch.setenv("FRAUD_PIPELINE_RETENTION_DAYS", '{"decisions": 400}')
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    with TokenKeys.from_settings(Settings()) as keys:
        token = Tokeniser(keys).token("card_id", CARD)
    done = CliRunner().invoke(main, ["forget"], input=f"{CARD}\n")
    assert done.exit_code == 0, done.output
    assert "one that reads the topics anew holds the cases again" in done.output
    assert "so that lists keep the token" in done.output
    assert "  decisions: for 400 days\n" in done.output
    assert "  transactions: for ever\n" in done.output
    assert str(tmp_path / "data" / "snapshots") in done.output
    assert not {CARD, token} & set(done.output.replace(":", " ").split())
    again = CliRunner().invoke(main, ["forget", CARD])
    assert (again.exit_code, again.output.count("\n")) == (1, 1)
    assert CARD not in again.output
