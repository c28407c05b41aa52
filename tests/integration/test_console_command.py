"""The console as a process: its address and link, TLS, proxies, its end, and what it refuses."""

import re
import signal
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.console.options import ConsoleError, ConsoleOptions
from pipeline.demo.processes import settings_environment
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.settings import Settings
from tests.helpers.consoles import PASSWORD, Client, served, stand_in_parts
from tests.helpers.runs import Run, RunStarter
from tests.helpers.waiting import TIMEOUT_S, eventually

STOP_S = 10.0


@pytest.fixture
def environment(kafka_settings: Settings) -> dict[str, str]:
    ensure_topics(str(kafka_settings.kafka_bootstrap_servers), kafka_settings)
    return settings_environment(kafka_settings)


@pytest.fixture
def console(begin: RunStarter, environment: dict[str, str]) -> Iterator[Run]:
    run = begin("console", "--port", "0", **environment)
    run.wait_for("/link/")
    yield run
    run.process.terminate()
    run.process.wait(TIMEOUT_S)


def address(run: Run) -> tuple[int, str]:
    found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/\S*)?", run.output.strip())
    assert found is not None, run.output
    return int(found[1]), found[2] or ""


def invoke(environment: dict[str, str], *arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["console", *arguments], env=environment, input=stdin)
    assert result.exit_code == code, result.output
    return result


def test_a_first_start_prints_a_link_that_signs_in(console: Run, kafka_settings: Settings) -> None:
    port, link = address(console)
    client = Client(port)
    assert "Sign in as" in client.get(link).text
    assert client.post(link).status == 303
    page = client.get("/")
    assert page.status == 200
    assert "(supervisor)" in page.text
    eventually(lambda: client.get("/healthz").text == "ok\n")
    directory = kafka_settings.data_dir / "console"
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}
    assert link not in console.errors
    assert "Traceback" not in console.errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_although_pages_listen(console: Run, number: signal.Signals) -> None:
    port, link = address(console)
    client = Client(port)
    client.post(link)
    connection = client.connection()
    connection.request("GET", "/events", None, client.headers())
    response = connection.getresponse()
    assert response.readline() == b"retry: 2000\n"
    console.process.send_signal(number)
    while response.readline():
        pass
    connection.close()
    assert console.process.wait(TIMEOUT_S) == 0
    assert "Traceback" not in console.errors


def test_a_second_start_prints_its_address_and_keeps_sessions(
    console: Run, begin: RunStarter, environment: dict[str, str], tmp_path: Path
) -> None:
    port, link = address(console)
    client = Client(port)
    client.post(link)
    taken = invoke(environment, "--port", str(port), code=1)
    assert f"cannot listen on 127.0.0.1, port {port}" in taken.output
    second = invoke(environment, "--port", "0", code=1)
    assert "another console uses" in second.output
    console.process.terminate()
    assert console.process.wait(TIMEOUT_S) == 0
    console.end()
    again = begin("console", "--port", str(port), **environment)
    again.wait_for(f":{port}")
    assert address(again) == (port, "")
    assert client.get("/account").status == 200
    again.process.terminate()
    again.process.wait(TIMEOUT_S)


def test_commands_manage_accounts_of_a_console_that_runs(
    console: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    port, _ = address(console)
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    invoke(environment, "account", "add", "ana", "--role", "analyst", "--password-file", str(password))
    invoke(environment, "account", "add", "sue", stdin=f"{PASSWORD}\n{PASSWORD}\n")
    assert (
        "there is an account ana"
        in invoke(environment, "account", "add", "ana", stdin=f"{PASSWORD}\n{PASSWORD}\n", code=1).output
    )
    client = Client(port)
    assert client.post("/login", {"name": "ana", "password": PASSWORD}).status == 303
    invoke(environment, "account", "role", "ana", "operator")
    assert "ana (operator)" in client.get("/account").text
    invoke(environment, "account", "disable", "ana")
    assert client.get("/account").status == 303
    assert invoke(environment, "account", "list").output == "ana  operator, disabled\nsue  supervisor\n"
    link = invoke(environment, "--port", str(port), "link", "--name", "aud", "--role", "auditor").output.strip()
    assert link.startswith(f"http://127.0.0.1:{port}/link/")
    assert client.post(link.removeprefix(f"http://127.0.0.1:{port}")).status == 303
    assert "aud (auditor)" in client.get("/account").text


def test_a_file_of_accounts_is_written_and_taken(
    begin: RunStarter, environment: dict[str, str], kafka_settings: Settings, tmp_path: Path
) -> None:
    lines = invoke(environment, "account", "add", "ana", "--role", "analyst", "--print", stdin=f"{PASSWORD}\n" * 2)
    seed = tmp_path / "accounts.toml"
    seed.write_text(lines.stdout)
    run = begin("console", "--port", "0", "--accounts", str(seed), **environment)
    run.wait_for("http://")
    port, path = address(run)
    assert path == ""
    assert Client(port).post("/login", {"name": "ana", "password": PASSWORD}).status == 303
    run.process.terminate()
    assert run.process.wait(TIMEOUT_S) == 0


def test_without_a_cluster_it_says_how_to_get_one(tmp_path: Path) -> None:
    result = invoke({"FRAUD_PIPELINE_DATA_DIR": str(tmp_path)}, "--port", "0", code=1)
    assert "No embedded broker runs" in result.output


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path) -> None:
    program = "import sys; sys.modules['argon2'] = None; from pipeline.cli import main; main(['console', 'link'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "Error: The console is an extra: pip install 'fraud-pipeline[console]'\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "fraud.example"])
def test_beyond_this_machine_it_wants_tls(host: str, tmp_path: Path) -> None:
    result = invoke({"FRAUD_PIPELINE_DATA_DIR": str(tmp_path)}, "--host", host, code=1)
    assert "passwords need TLS" in result.output
    assert "--certificate and --key" in result.output
    assert list(tmp_path.iterdir()) == []


class Certificate:
    """A certificate of the names of this machine, and of one that stands for many."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("localhost", "127.0.0.1", "*.fraud.example")
        self.certificate, self.key = directory / "console.pem", directory / "console.key"
        issued.cert_chain_pems[0].write_to_path(self.certificate)
        issued.private_key_pem.write_to_path(self.key)

    @property
    def trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path)


def test_pages_come_by_tls(certificate: Certificate, tmp_path: Path) -> None:
    options = ConsoleOptions("0.0.0.0", certificate=certificate.certificate, key=certificate.key)
    with served(stand_in_parts(tmp_path / "own"), options) as console:
        client = console.client(context=certificate.trust)
        answer = client.post(f"/link/{console.accounts.link('auditor', 'aud')}")
        (cookie,) = answer.headers.get_all("set-cookie")
        assert cookie.startswith(f"__Host-console-{console.port}=")
        assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert client.get("/account").status == 200
        assert client.get("/account").headers["strict-transport-security"] == "max-age=31536000"
        statuses = [client.get("/account", Host=host).status for host in ("eu.fraud.example", "a.eu.fraud.example")]
        assert statuses == [200, 421]
        with pytest.raises(ssl.SSLCertVerificationError):
            console.client(context=ssl.create_default_context()).get("/login")
        assert options._replace(port=1).address == "https://localhost:1"


def test_behind_a_proxy_its_word_counts_and_no_other(tmp_path: Path) -> None:
    options = ConsoleOptions(behind="Fraud.example", proxy_address="127.0.0.1")
    with served(stand_in_parts(tmp_path), options) as console:
        client = console.client()
        assert client.get("/login", Host="fraud.example").status == 421
        assert client.get("/login", Host="other.example", X_Forwarded_Proto="https").status == 421
        forwarded = {"Host": "fraud.example", "X_Forwarded_Proto": "https", "X_Forwarded_For": "192.0.2.7"}
        answer = client.post(f"/link/{console.accounts.link('auditor', 'aud')}", None, **forwarded)
        assert answer.status == 303
        assert answer.headers["set-cookie"].startswith("__Host-")
        client.post("/login", {"name": "x", "password": "y"}, **forwarded)
        attempts = console.accounts._database.execute("SELECT subject FROM attempts").fetchall()
        assert ("address 192.0.2.7",) in attempts
    with served(stand_in_parts(tmp_path), options._replace(proxy_address="192.0.2.1")) as console:
        assert console.client().get("/login", **forwarded).status == 421


def test_a_proxy_that_was_not_named_does_not_count(tmp_path: Path) -> None:
    with served(stand_in_parts(tmp_path)) as console:
        client = console.client()
        client.post("/login", {"name": "x", "password": "y"}, X_Forwarded_For="192.0.2.7")
        attempts = console.accounts._database.execute("SELECT subject FROM attempts").fetchall()
        assert ("address 127.0.0.1",) in attempts


def test_certificates_that_cannot_be_used_are_explained(certificate: Certificate, tmp_path: Path) -> None:
    other = Certificate(tmp_path.joinpath("other").mkdir() or tmp_path / "other")
    parts = stand_in_parts(tmp_path / "own")
    for options, text in (
        (ConsoleOptions(certificate=certificate.certificate), "needs its key"),
        (ConsoleOptions(key=certificate.key), "needs its key"),
        (ConsoleOptions(certificate=certificate.key, key=certificate.key), "no certificate with host names"),
        (ConsoleOptions(certificate=certificate.certificate, key=other.key), "certificate and key cannot be used"),
    ):
        with pytest.raises(ConsoleError, match=text), served(parts, options):
            pass
    parts.accounts.close()
