"""librdkafka's properties secure a connection of one's own in the same way."""

import asyncio
import base64
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from pipeline.kafka.cluster.connection_security import security_of
from pipeline.kafka.cluster.errors import ConfigError


def token_of(config: dict[str, Any]) -> str:
    security = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "OAUTHBEARER"}
    return str(asyncio.run(security_of(security | config).arguments["sasl_oauth_token_provider"].token()))


def test_certificates_come_from_files_texts_and_stores(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("worker.example")
    chain = issued.cert_chain_pems[0].bytes()
    key = issued.private_key_pem.bytes()
    files = {"pem": chain, "key": key, "ca": authority.cert_pem.bytes()}
    files["p12"] = pkcs12.serialize_key_and_certificates(
        None,
        serialization.load_pem_private_key(key, None),
        x509.load_pem_x509_certificate(chain),
        None,
        serialization.BestAvailableEncryption(b"secret"),
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    ways = (
        {"ssl.certificate.location": str(tmp_path / "pem"), "ssl.key.location": str(tmp_path / "key")},
        {"ssl.certificate.pem": chain.decode(), "ssl.key.pem": key.decode()},
        {"ssl.keystore.location": str(tmp_path / "p12"), "ssl.keystore.password": "secret"},
    )
    for way in ways:
        config = {"security.protocol": "ssl", "ssl.ca.location": str(tmp_path / "ca"), **way}
        context = security_of(config).arguments["ssl_context"]
        assert context.check_hostname
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert len(context.get_ca_certs()) == 1
    trusting = {"security.protocol": "ssl", "enable.ssl.certificate.verification": "false"}
    assert security_of(trusting).arguments["ssl_context"].verify_mode == ssl.CERT_NONE


def test_tokens_are_those_of_the_provider() -> None:
    asked: list[tuple[str | None, bytes]] = []

    class Provider(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.headers["Authorization"], self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"access_token": "a token"}')

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Provider) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": "worker",
            "sasl.oauthbearer.client.secret": "secret",
            "sasl.oauthbearer.scope": "kafka",
            "sasl.oauthbearer.token.endpoint.url": f"http://127.0.0.1:{server.server_port}/token",
        }
        assert token_of(config) == "a token"
        server.shutdown()
    login = base64.b64encode(b"worker:secret").decode()
    assert asked == [(f"Basic {login}", b"grant_type=client_credentials&scope=kafka")]


def test_unsigned_tokens_name_the_principal() -> None:
    token = token_of(
        {"enable.sasl.oauthbearer.unsecure.jwt": "true", "sasl.oauthbearer.config": "principal=worker lifeSeconds=60"}
    )
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert (claims["sub"], claims["exp"] - claims["iat"]) == ("worker", 60)


def test_a_mechanism_of_librdkafka_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="GSSAPI: use PLAIN, SCRAM or OAUTHBEARER"):
        security_of({"security.protocol": "sasl_ssl", "sasl.mechanism": "GSSAPI"})
