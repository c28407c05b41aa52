"""Options of the console, and the names by which browsers reach it."""

from pathlib import Path
from typing import Annotated, Final, NamedTuple

from cryptography import x509
from msgspec import Meta

from pipeline.console.guard import HostPolicy

LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "::1")


class ConsoleError(RuntimeError):
    """The console cannot start; the text says what to change."""


class ConsoleOptions(NamedTuple):
    """Options of the console."""

    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="Port to listen on; 0 for any free one.")] = 8_400
    certificate: Annotated[
        Path | None, Meta(description="Certificate (PEM), for pages by TLS; its names are those of the console.")
    ] = None
    key: Annotated[Path | None, Meta(description="Key of the certificate (PEM).")] = None
    behind: Annotated[
        str | None, Meta(description="Host name of a proxy in front that ends TLS.", extra={"metavar": "HOSTNAME"})
    ] = None
    proxy_address: Annotated[
        str, Meta(description="Address or network of that proxy, whose X-Forwarded-For and -Proto count.")
    ] = "127.0.0.1"
    accounts: Annotated[
        Path | None, Meta(description="File of accounts, which `console account add --print` writes.")
    ] = None
    instance: Annotated[
        str | None, Meta(description="Stable, unique name of this console.  [default: the host's name, and the port]")
    ] = None

    def hosts(self) -> HostPolicy:
        """Return the names of the console; raises `ConsoleError` where others could listen to what browsers send."""
        names = {*LOOPBACK_NAMES, self.host}
        if (self.certificate is None) != (self.key is None):
            raise ConsoleError("a certificate needs its key: give both --certificate and --key")
        if self.certificate is not None:
            names |= certificate_names(self.certificate)
        elif self.behind is not None:
            names |= {self.behind.lower()}
        elif self.host not in LOOPBACK_NAMES:
            raise ConsoleError(
                f"beyond this machine, passwords need TLS: for --host {self.host}, give --certificate and --key, or "
                "name the proxy that ends TLS with --behind HOSTNAME"
            )
        return HostPolicy(names, self.certificate is not None or self.behind is not None, self.port)

    @property
    def address(self) -> str:
        """Address of the console for a browser, without its path."""
        if self.behind is not None:
            return f"https://{self.behind}"
        host = "localhost" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104
        return f"http{'s' if self.certificate else ''}://{f'[{host}]' if ':' in host else host}:{self.port}"


def certificate_names(path: Path) -> set[str]:
    """Return the host names and addresses of a certificate; raises `ConsoleError` where it has none."""
    try:
        extensions = x509.load_pem_x509_certificates(path.read_bytes())[0].extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise ConsoleError(f"{path} is no certificate with host names ({error}): give another one") from None
    hosts = (name.lower() for name in names.get_values_for_type(x509.DNSName))
    return {*hosts, *map(str, names.get_values_for_type(x509.IPAddress))}
