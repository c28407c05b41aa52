"""Accounts, sessions, links and attempts to sign in, in a file of their own."""

import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from pipeline.console.accounts import (
    ATTEMPTS_S,
    DELAY_S,
    IDLE_S,
    LINK_S,
    MOST_ATTEMPTS,
    SESSION_S,
    AccountError,
    Accounts,
    SessionEnded,
    TooManyAttempts,
)
from tests.helpers.clocks import SetClock
from tests.helpers.consoles import AGENT, PASSWORD


@pytest.fixture
def clock() -> SetClock:
    return SetClock(1_000_000.0)


@pytest.fixture
def accounts(tmp_path: Path, clock: SetClock) -> Iterator[Accounts]:
    opened = Accounts(tmp_path / "console/accounts.sqlite", clock)
    yield opened
    opened.close()


def test_nobody_else_reads_the_file(accounts: Accounts, tmp_path: Path) -> None:
    path = tmp_path / "console/accounts.sqlite"
    accounts.add("ana", "analyst", PASSWORD)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    path.chmod(0o640)
    with pytest.raises(AccountError, match=r"others may read .*: chmod 600 it"):
        Accounts(path)


def test_a_file_that_is_no_database_is_an_error_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "accounts.sqlite"
    path.write_bytes(b"not a database" * 100)
    path.chmod(0o600)
    with pytest.raises(AccountError, match="cannot be used"):
        Accounts(path)


def test_no_secret_is_stored(accounts: Accounts, tmp_path: Path) -> None:
    accounts.add("ana", "analyst", PASSWORD)
    secrets = [PASSWORD, accounts.link("auditor", "aud"), accounts.begin_session("ana", AGENT)]
    accounts.close()
    stored = b"".join(file.read_bytes() for file in (tmp_path / "console").iterdir())
    assert b"$argon2id$" in stored
    assert [secret for secret in secrets if secret.encode() in stored] == []


def test_passwords_are_verified(accounts: Accounts) -> None:
    accounts.add("ana", "analyst", PASSWORD)
    accounts.add("bob", "auditor", None)
    verified = accounts.verified("ana", PASSWORD, "::1")
    assert verified is not None
    assert (verified.name, verified.role) == ("ana", "analyst")
    for name, password in (("ana", PASSWORD + "x"), ("bob", ""), ("bob", "None"), ("nobody", PASSWORD), ("", "")):
        assert accounts.verified(name, password, "::1") is None
    accounts.set_disabled("ana", True)
    assert accounts.verified("ana", PASSWORD, "::1") is None


def test_an_unknown_name_costs_a_hash_too(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts.add("ana", "analyst", PASSWORD)
    hashed: list[str] = []

    def verify(_: PasswordHasher, stored: str, __: str) -> None:
        algorithm_version_costs = stored.split("$")[:4]
        hashed.append("$".join(algorithm_version_costs))

    monkeypatch.setattr(PasswordHasher, "verify", verify)
    for name in ("ana", "nobody"):
        accounts.verified(name, PASSWORD, "::1")
    assert len(hashed) == 2
    assert len(set(hashed)) == 1


def test_a_hash_costs_as_much_as_argon2_proposes(
    accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.console.accounts.PasswordHasher", PasswordHasher)
    real = Accounts(tmp_path / "real/accounts.sqlite")
    real.add("ana", "analyst", PASSWORD)
    ((hashed,),) = real._database.execute("SELECT password FROM accounts")
    assert PasswordHasher().check_needs_rehash(hashed) is False
    assert real.verified("ana", PASSWORD, "::1") is not None
    real.close()
    assert PasswordHasher().check_needs_rehash(accounts.hashed(PASSWORD)) is True


@pytest.mark.parametrize("password", ["short", "x" * 1_025])
def test_passwords_have_lengths(accounts: Accounts, password: str) -> None:
    with pytest.raises(AccountError, match="12 to 1024 characters"):
        accounts.add("ana", "analyst", password)


@pytest.mark.parametrize("name", ["", "-", "-x", "a b", "<b>", "a\n", "x" * 65, "a/b", "\u202ex"])
def test_names_are_plain(accounts: Accounts, name: str) -> None:
    with pytest.raises(AccountError, match="the name of an account"):
        accounts.add(name, "analyst", None)
    with pytest.raises(AccountError, match="the name of an account"):
        accounts.link("analyst", name)


def test_attempts_at_a_name_wait_longer_and_longer_at_their_address_alone(
    accounts: Accounts, clock: SetClock, tmp_path: Path
) -> None:
    accounts.add("ana", "analyst", PASSWORD)
    for _ in range(MOST_ATTEMPTS["name"]):
        assert accounts.verified("ana", "wrong", "10.0.0.1") is None
    again = Accounts(tmp_path / "console/accounts.sqlite", clock)
    for wait_s in (DELAY_S, 2 * DELAY_S, 4 * DELAY_S, 8 * DELAY_S, 16 * DELAY_S, ATTEMPTS_S, ATTEMPTS_S):
        with pytest.raises(TooManyAttempts, match=f"wait {wait_s} seconds"):
            again.verified("ana", PASSWORD, "10.0.0.1")
        clock.now_s += wait_s - 1
        with pytest.raises(TooManyAttempts, match="wait 1 seconds"):
            again.verified("ana", PASSWORD, "10.0.0.1")
        clock.now_s += 1
        assert again.verified("ana", "wrong", "10.0.0.1") is None
    # Whoever guesses keeps nobody out who sits elsewhere.
    assert again.verified("ana", PASSWORD, "10.0.0.2") is not None
    clock.now_s += ATTEMPTS_S
    assert again.verified("ana", PASSWORD, "10.0.0.1") is not None
    assert again.verified("ana", "wrong", "10.0.0.1") is None
    again.close()


def test_attempts_are_limited_for_an_address_whatever_the_name(accounts: Accounts) -> None:
    for number in range(MOST_ATTEMPTS["address"]):
        assert accounts.verified(f"name{number}", "wrong", "10.0.0.1") is None
    with pytest.raises(TooManyAttempts):
        accounts.verified("another", "wrong", "10.0.0.1")
    assert accounts.verified("another", "wrong", "10.0.0.2") is None


def test_attempts_at_the_same_time_are_all_counted(accounts: Accounts) -> None:
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            outcomes.append(str(accounts.verified("ana", "wrong", "10.0.0.1")))
        except TooManyAttempts:
            outcomes.append("refused")

    threads = [threading.Thread(target=attempt) for _ in range(2 * MOST_ATTEMPTS["name"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("None") == MOST_ATTEMPTS["name"]
    assert outcomes.count("refused") == MOST_ATTEMPTS["name"]


def test_signing_in_clears_the_attempts_of_its_name(accounts: Accounts) -> None:
    accounts.add("ana", "analyst", PASSWORD)
    for number in range(2 * MOST_ATTEMPTS["name"]):
        right = number % 2 == 1
        assert (accounts.verified("ana", PASSWORD if right else "wrong", f"10.0.0.{number}") is not None) == right


def test_a_link_works_once_and_makes_its_account(accounts: Accounts) -> None:
    token = accounts.link("supervisor", "sue")
    assert accounts.find_link(token) == ("sue", "supervisor")
    assert accounts.rows() == []
    row = accounts.use_link(token)
    assert row is not None
    assert (row.name, row.role, row.has_password) == ("sue", "supervisor", False)
    assert accounts.use_link(token) is None
    assert accounts.find_link(token) is None
    assert accounts.use_link("unknown") is None


def test_a_link_expires(accounts: Accounts, clock: SetClock) -> None:
    token = accounts.link("supervisor", "sue")
    clock.now_s += LINK_S + 1
    assert accounts.find_link(token) is None
    assert accounts.use_link(token) is None
    assert accounts.rows() == []


def test_a_link_does_not_enable_a_disabled_account(accounts: Accounts) -> None:
    accounts.add("sue", "supervisor", None)
    token = accounts.link("supervisor", "sue")
    accounts.set_disabled("sue", True)
    assert accounts.use_link(token) is None
    with pytest.raises(AccountError, match="disabled"):
        accounts.link("supervisor", "sue")


def test_a_link_is_used_once_by_many_at_the_same_time(accounts: Accounts) -> None:
    token, used = accounts.link("analyst", "ana"), []
    threads = [threading.Thread(target=lambda: used.append(accounts.use_link(token))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([row for row in used if row is not None]) == 1


def test_a_session_ends_when_idle(accounts: Accounts, clock: SetClock) -> None:
    accounts.add("ana", "analyst", None)
    token = accounts.begin_session("ana", AGENT)
    for _ in range(2):
        clock.now_s += IDLE_S - 1
        assert accounts.session(token, AGENT, active=True) is not None
    assert accounts.sessions == 1
    clock.now_s += IDLE_S - 1
    assert accounts.session(token, AGENT, active=False) is not None
    clock.now_s += 1
    assert accounts.sessions == 0
    with pytest.raises(SessionEnded, match="the session of ana is too old"):
        accounts.session(token, AGENT, active=False)
    assert accounts.session(token, AGENT, active=True) is None


def test_a_session_ends_after_a_day(accounts: Accounts, clock: SetClock) -> None:
    accounts.add("ana", "analyst", None)
    token, begun_s = accounts.begin_session("ana", AGENT), clock.now_s
    while clock.now_s + 3_600 < begun_s + SESSION_S:
        clock.now_s += 3_600
        assert accounts.session(token, AGENT, active=True) is not None
    clock.now_s += 3_600
    with pytest.raises(SessionEnded, match="too old"):
        accounts.session(token, AGENT, active=True)


def test_a_session_of_another_browser_was_stolen(accounts: Accounts) -> None:
    accounts.add("ana", "analyst", None)
    token = accounts.begin_session("ana", AGENT)
    with pytest.raises(SessionEnded, match="the session of ana was used by another browser"):
        accounts.session(token, "another", active=True)
    assert accounts.session(token, AGENT, active=True) is None


def test_changes_of_an_account_reach_its_sessions(accounts: Accounts) -> None:
    accounts.add("ana", "analyst", PASSWORD)
    token = accounts.begin_session("ana", AGENT)
    accounts.set_role("ana", "auditor")
    session = accounts.session(token, AGENT, active=True)
    assert session is not None
    assert session.role == "auditor"
    accounts.set_password("ana", PASSWORD + "2")
    assert accounts.session(token, AGENT, active=True) is None
    token = accounts.begin_session("ana", AGENT)
    accounts.set_disabled("ana", True)
    accounts.set_disabled("ana", False)
    assert accounts.session(token, AGENT, active=True) is None


def test_what_is_not_there_cannot_be_changed(accounts: Accounts) -> None:
    with pytest.raises(AccountError, match="no account ana"):
        accounts.set_role("ana", "auditor")
    accounts.add("ana", "analyst", None)
    with pytest.raises(AccountError, match="there is an account ana"):
        accounts.add("ana", "auditor", None)


def test_the_key_of_blind_cases_stays(accounts: Accounts, tmp_path: Path) -> None:
    again = Accounts(tmp_path / "console/accounts.sqlite")
    other = Accounts(tmp_path / "other/accounts.sqlite")
    assert again.blind_key == accounts.blind_key
    assert len(other.blind_key) == 32
    assert other.blind_key != accounts.blind_key
    again.close()
    other.close()


def test_a_file_of_accounts_is_taken_over(accounts: Accounts, tmp_path: Path) -> None:
    seed, hashed = tmp_path / "seed.toml", accounts.hashed(PASSWORD)

    def entry(name: str, role: str) -> str:
        return f'[accounts."{name}"]\nrole = "{role}"\npassword = "{hashed}"\n'

    accounts.add("own", "auditor", None)
    seed.write_text(entry("ana", "analyst") + entry("sue", "supervisor"))
    accounts.seed(seed)
    assert accounts.verified("ana", PASSWORD, "::1") is not None
    seed.write_text(entry("sue", "auditor"))
    accounts.seed(seed)
    assert [(row.name, row.role, row.disabled) for row in accounts.rows()] == [
        ("ana", "analyst", True),
        ("own", "auditor", False),
        ("sue", "auditor", False),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "accounts = 3",
        "[accounts.ana]\nrole = 'analyst'",
        "[accounts.ana]\nrole = 'root'\npassword = '{hashed}'",
        "[accounts.ana]\nrole = 'analyst'\npassword = 'plain'",
        "[accounts.'<b>']\nrole = 'analyst'\npassword = '{hashed}'",
        "\x00",
    ],
)
def test_a_file_of_accounts_that_cannot_be_used_changes_nothing(accounts: Accounts, tmp_path: Path, text: str) -> None:
    seed = tmp_path / "seed.toml"
    seed.write_text(text.replace("{hashed}", accounts.hashed(PASSWORD)))
    with pytest.raises(AccountError):
        accounts.seed(seed)
    assert accounts.rows() == []


def test_what_is_deleted_is_overwritten(accounts: Accounts, tmp_path: Path) -> None:
    path = tmp_path / "console/accounts.sqlite"
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert accounts._database.execute("PRAGMA secure_delete").fetchone() == (1,)
