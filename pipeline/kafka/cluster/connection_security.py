"""Security of connections of one's own, as the librdkafka properties of the other clients say."""

import asyncio
import base64
import http.client
import json
import ssl
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

from aiokafka.abc import AbstractTokenProvider

from pipeline.kafka.cluster.errors import ConfigError

_TIMEOUT_S: Final = 30.0
_UNUSABLE: Final = "FRAUD_PIPELINE_KAFKA_CONFIG: "


class Security(NamedTuple):
    """Arguments of `aiokafka.conn.create_conn` about security; none is shown."""

    arguments: Mapping[str, Any]

    def __repr__(self) -> str:
        return "Security(...)"


def security_of(config: Mapping[str, Any]) -> Security:
    """Return the security of a client with these librdkafka properties.

    Raises:
        ConfigError: They name a mechanism that only librdkafka has.
    """
    protocol = str(config.get("security.protocol", "plaintext")).upper()
    arguments: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        arguments["ssl_context"] = _tls(config)
    if protocol.startswith("SASL"):
        mechanism = str(config.get("sasl.mechanism", config.get("sasl.mechanisms", "GSSAPI"))).upper()
        arguments["sasl_mechanism"] = mechanism
        if mechanism == "OAUTHBEARER":
            arguments["sasl_oauth_token_provider"] = _Tokens(config)
        elif mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            arguments["sasl_plain_username"] = config.get("sasl.username", "")
            arguments["sasl_plain_password"] = config.get("sasl.password", "")
        else:
            raise ConfigError(
                f"{_UNUSABLE}batches cannot be fetched with sasl.mechanism {mechanism}: use PLAIN, SCRAM or OAUTHBEARER"
            )
    return Security(arguments)


def _is_on(config: Mapping[str, Any], name: str, default: str = "true") -> bool:
    return str(config.get(name, default)).lower() in ("true", "t", "1")


def _tls(config: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    verifies = _is_on(config, "enable.ssl.certificate.verification")
    context.check_hostname = verifies and str(config.get("ssl.endpoint.identification.algorithm", "https")) != "none"
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    authority = config.get("ssl.ca.location", "")
    if authority and authority != "probe":
        path = Path(authority)
        context.load_verify_locations(capath=authority) if path.is_dir() else context.load_verify_locations(authority)
    elif config.get("ssl.ca.pem"):
        context.load_verify_locations(cadata=config["ssl.ca.pem"])
    else:
        context.load_default_certs()
    if config.get("ssl.crl.location"):
        context.load_verify_locations(config["ssl.crl.location"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if config.get("ssl.cipher.suites"):
        context.set_ciphers(config["ssl.cipher.suites"])
    _load_certificate(context, config)
    return context


def _load_certificate(context: ssl.SSLContext, config: Mapping[str, Any]) -> None:
    """Load the client's certificate: from PEM files, from PEM texts, or from a PKCS #12 store."""
    password = config.get("ssl.key.password")
    if config.get("ssl.keystore.location"):
        # Imported where a store is read: few clients have one.
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12

        secret = str(config.get("ssl.keystore.password", "")).encode() or None
        store = pkcs12.load_pkcs12(Path(config["ssl.keystore.location"]).read_bytes(), secret)
        found = [*([store.cert] if store.cert is not None else []), *store.additional_certs]
        chain = b"".join(each.certificate.public_bytes(Encoding.PEM) for each in found)
        key = b"" if store.key is None else store.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _load_texts(context, key + chain, None)
    elif config.get("ssl.certificate.location"):
        key_file = config.get("ssl.key.location") or None
        context.load_cert_chain(config["ssl.certificate.location"], key_file, password)
    elif config.get("ssl.certificate.pem"):
        text = f"{config.get('ssl.key.pem', '')}\n{config['ssl.certificate.pem']}"
        _load_texts(context, text.encode(), password)


def _load_texts(context: ssl.SSLContext, text: bytes, password: str | None) -> None:
    # Python reads keys from files alone; this one is its user's own, and gone at once.
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        context.load_cert_chain(file.name, password=password)


@AbstractTokenProvider.register
class _Tokens:
    """Tokens for OAUTHBEARER: of an OpenID provider, or unsigned ones, as tests use them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._is_unsigned = _is_on(config, "enable.sasl.oauthbearer.unsecure.jwt", "false")
        if not self._is_unsigned and str(config.get("sasl.oauthbearer.method", "default")).lower() != "oidc":
            raise ConfigError(f"{_UNUSABLE}OAUTHBEARER needs sasl.oauthbearer.method oidc")

    async def token(self) -> str:
        """Return a token."""
        if self._is_unsigned:
            return self._unsigned()
        return await asyncio.to_thread(self._of_provider)

    def extensions(self) -> dict[str, str]:
        """Return the extensions that go with the token."""
        pairs = str(self._config.get("sasl.oauthbearer.extensions", ""))
        return dict(pair.split("=", 1) for pair in pairs.split(",") if "=" in pair)

    def _of_provider(self) -> str:
        config = self._config
        form = {"grant_type": "client_credentials"}
        if config.get("sasl.oauthbearer.scope"):
            form["scope"] = config["sasl.oauthbearer.scope"]
        secret = f"{config.get('sasl.oauthbearer.client.id', '')}:{config.get('sasl.oauthbearer.client.secret', '')}"
        headers = {
            "Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}",
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
        }
        url = urlsplit(str(config.get("sasl.oauthbearer.token.endpoint.url", "")))
        kind = http.client.HTTPConnection if url.scheme == "http" else http.client.HTTPSConnection
        with closing(kind(url.netloc, timeout=_TIMEOUT_S)) as connection:
            connection.request("POST", f"{url.path or '/'}?{url.query}", urlencode(form), headers)
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise PermissionError(f"the provider of tokens answers with {answer.status} {answer.reason}")
            try:
                return str(json.load(answer)["access_token"])
            except (KeyError, TypeError, ValueError) as error:
                raise PermissionError("the provider of tokens answers without an access_token") from error

    def _unsigned(self) -> str:
        given = dict(pair.split("=", 1) for pair in str(self._config.get("sasl.oauthbearer.config", "")).split())
        now_s = int(time.time())
        claims = {
            given.get("principalClaimName", "sub"): given.get("principal", ""),
            "iat": now_s,
            "exp": now_s + int(given.get("lifeSeconds", "3600")),
        }
        parts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)]
        return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), ""])
