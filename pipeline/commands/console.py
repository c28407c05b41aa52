"""``fraud-pipeline console``: the analysts' console in a browser, its accounts, and links to sign in by."""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

try:
    import uvicorn
    from starlette.routing import BaseRoute
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from pipeline.console.accounts import LINK_S, Accounts, check_name
    from pipeline.console.options import ConsoleError, ConsoleOptions
    from pipeline.console.roles import ROLES, Role
except ModuleNotFoundError as missing:
    if missing.name not in {"argon2", "python_multipart", "starlette", "uvicorn"}:
        raise
    raise click.ClickException("The console is an extra: pip install 'fraud-pipeline[console]'") from missing

from pipeline.broker.running import SERVICE_TIMEOUT_S, find_cluster
from pipeline.commands.option_groups import declared_options
from pipeline.commands.shared_options import user_name
from pipeline.observability.logs import configure_logging
from pipeline.observability.terminal import printable
from pipeline.settings import Settings
from pipeline.state.state_directory import DirectoryInUse, StateDirectory

if TYPE_CHECKING:
    from pipeline.console.app import Changes, Parts

STOP_S: Final = 2
"""Seconds that requests have to end when the console stops."""
MOST_CONNECTIONS: Final = 1_000
HEAD_S: float = 10.0
"""Seconds in which a connection has to send the head of its first request, or of the next one that it has begun."""
role_option = click.option(
    "--role", type=click.Choice(ROLES), default="supervisor", show_default=True, help="Its role."
)


def accounts_file(settings: Settings) -> Path:
    """Return the file of accounts."""
    return settings.data_dir / "console" / "accounts.sqlite"


@click.group(invoke_without_command=True)
@declared_options("options", ConsoleOptions)
@click.option("--link", "with_link", is_flag=True, help="Print a link to sign in by, though there are accounts.")
@click.pass_context
def command(context: click.Context, options: ConsoleOptions, with_link: bool) -> None:
    """Serve the analysts' console until stopped; its address is printed.

    While there is no account, a link is printed instead, which works once and for 15 minutes. Beyond this machine
    (--host) the console needs a certificate, or a proxy that ends TLS.
    """
    if context.invoked_subcommand is None:
        settings = Settings()
        configure_logging(settings)
        serve(settings, options, with_link)


def serve(settings: Settings, options: ConsoleOptions, with_link: bool = False) -> None:
    """Serve the console until SIGTERM or Ctrl-C.

    Args:
        settings: Settings, with the cluster.
        options: Options of the console.
        with_link: Whether a link is printed though there are accounts.

    Raises:
        ConsoleError: The port is taken, the options are unsafe, or another console uses the directory.
        ClusterNotFound: No cluster answers.
    """
    options.hosts()
    with ExitStack() as stack:
        listener = stack.enter_context(closing(_listen(options)))
        options = options._replace(port=listener.getsockname()[1])
        accounts = stack.enter_context(closing(Accounts(accounts_file(settings))))
        if options.accounts is not None:
            accounts.seed(options.accounts)
        parts = stack.enter_context(_running_parts(settings, options, accounts))
        server = ConsoleServer(server_config(parts, options), parts.changes)
        link = _link(accounts, options, "supervisor", None) if with_link or not accounts.rows() else None
        click.echo(link or options.address)
        click.echo(f"The console serves at {options.address}. Ctrl-C stops it.", err=True)
        if link is not None:
            click.echo(
                f"The link works once, for {LINK_S // 60} minutes. `fraud-pipeline console link` makes another.",
                err=True,
            )
        server.run(sockets=[listener])


def _listen(options: ConsoleOptions) -> socket.socket:
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise ConsoleError(
            f"the console cannot listen on {options.host}, port {options.port} ({error.strerror}): name another one "
            "with --host and --port"
        ) from None


@contextmanager
def _running_parts(settings: Settings, options: ConsoleOptions, accounts: Accounts) -> "Iterator[Parts]":
    """Follow the topics of the cluster, and yield what pages need."""
    from pipeline.console.actions import CaseActions
    from pipeline.console.app import Changes, Parts
    from pipeline.console.explanation import Explainer
    from pipeline.console.links import LinkReader
    from pipeline.console.reader import TopicsReader
    from pipeline.console.status import ClusterView
    from pipeline.console.store import CaseStore
    from pipeline.console.tables import database_file

    bootstrap, changes = find_cluster(settings, SERVICE_TIMEOUT_S), Changes()
    instance = options.instance or f"{settings.instance}-{options.port}"
    with ExitStack() as stack:
        try:
            stack.enter_context(StateDirectory(settings.data_dir, "console", "console"))
        except DirectoryInUse:
            raise ConsoleError(
                f"another console uses {settings.data_dir.absolute()}: give this one a directory of its own with "
                "FRAUD_PIPELINE_DATA_DIR"
            ) from None
        store = stack.enter_context(closing(CaseStore(database_file(settings), settings, accounts.blind_key)))
        status = stack.enter_context(closing(ClusterView(bootstrap, settings, store.figures)))
        reader = TopicsReader(bootstrap, settings, store, changes.publish)
        for thread in (reader, LinkReader(bootstrap, settings, store, changes.publish)):
            thread.start()
            stack.callback(thread.stop)
        actions, explainer = CaseActions(bootstrap, settings, store, instance), Explainer(bootstrap, settings)
        yield Parts(settings, store, actions, explainer, status, accounts, changes, reader)


def server_config(parts: "Parts", options: ConsoleOptions, routes: Sequence[BaseRoute] = ()) -> uvicorn.Config:
    """Return the configuration of a server; raises `ConsoleError` where its certificate cannot be used."""
    from pipeline.console.app import make_app

    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    config = uvicorn.Config(
        make_app(parts, options, routes),
        http=TimedConnection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=options.behind is not None,
        forwarded_allow_ips=options.proxy_address,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=STOP_S,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise ConsoleError(f"certificate and key cannot be used ({error}): give others") from None
    return config


class TimedConnection(H11Protocol):
    """A connection that ends where no request is complete in time: idle ones would take the places of others."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; wait for the rest of a request that they begin."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait."""
        self._end_wait()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_wait()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _end_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ConsoleServer(uvicorn.Server):
    """A server that ends streams of events when it stops, and whose signals leave no error."""

    def __init__(self, config: uvicorn.Config, changes: "Changes") -> None:
        super().__init__(config)
        self._changes = changes

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first signal; another one ends the program at once."""

        def stop(number: int, frame: Any) -> None:
            del frame
            self.should_exit = True
            signal.signal(number, signal.SIG_DFL)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then all requests."""
        self._changes.close()
        await super().shutdown(sockets)


def _link(accounts: Accounts, options: ConsoleOptions, role: Role, name: str | None) -> str:
    if not (name := name or user_name()):
        raise click.UsageError("this system knows no user name: name an account with --name")
    return f"{options.address}/link/{accounts.link(role, name)}"


@command.command()
@click.option("--name", help="Account to sign in; it is made if there is none.  [default: your user name]")
@role_option
@click.pass_context
def link(context: click.Context, name: str | None, role: Role) -> None:
    """Print a link that signs in to the console once, within 15 minutes.

    Give --host, --port, --certificate or --behind before `link` as the console has them.
    """
    with closing(Accounts(accounts_file(Settings()))) as accounts:
        click.echo(_link(accounts, _given_options(context), role, name))


def _given_options(context: click.Context) -> ConsoleOptions:
    parent = context.parent.params if context.parent else {}
    return ConsoleOptions(**{name: parent[name] for name in ConsoleOptions._fields})


@command.group()
def account() -> None:
    """Add, change and list accounts of the console."""


@account.command("add")
@click.argument("name")
@role_option
@click.option("--password-file", type=click.File(), help="File with the password.  [default: it is asked for]")
@click.option("--print", "as_lines", is_flag=True, help="Print the account for a file of accounts, and add none.")
def add_account(name: str, role: Role, password_file: Any, as_lines: bool) -> None:
    """Add the account NAME with a password."""
    if password_file is not None:
        password = password_file.read().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    with closing(Accounts(accounts_file(Settings()))) as accounts:
        if as_lines:
            click.echo(f'[accounts."{check_name(name)}"]\nrole = "{role}"\npassword = "{accounts.hashed(password)}"')
        else:
            accounts.add(name, role, password)


@account.command("role")
@click.argument("name")
@click.argument("role", type=click.Choice(ROLES))
def set_role(name: str, role: Role) -> None:
    """Give the account NAME another ROLE, from its next request on."""
    with closing(Accounts(accounts_file(Settings()))) as accounts:
        accounts.set_role(name, role)


@account.command("disable")
@click.argument("name")
def disable(name: str) -> None:
    """Disable the account NAME, and end its sessions."""
    with closing(Accounts(accounts_file(Settings()))) as accounts:
        accounts.set_disabled(name, True)


@account.command("list")
def list_accounts() -> None:
    """List accounts with their roles."""
    with closing(Accounts(accounts_file(Settings()))) as accounts:
        for row in accounts.rows():
            facts = [row.role, *(["disabled"] if row.disabled else []), *([] if row.has_password else ["no password"])]
            click.echo(f"{printable(row.name)}  {', '.join(facts)}")
