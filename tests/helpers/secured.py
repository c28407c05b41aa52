"""A real broker as banks run it: TLS, TLS with client certificates, SASL over TLS, and Kafka's own authorizer."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import trustme
from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography.hazmat.primitives import serialization

from pipeline.broker.local import HOST, free_port
from pipeline.kafka.cluster.clients import admin_client
from tests.helpers.cluster import kafka_nodes

SUPER: Final = "root"
"""User who may do everything."""
PASSWORDS: Final = "a password, {}"
MECHANISM: Final = "SCRAM-SHA-512"
LISTENERS: Final = {"TLS": "SSL", "MUTUAL": "SSL", "LOGIN": "SASL_SSL"}
"""Listeners beside the plain one of the tests, by name; each with its protocol."""


class Secured(NamedTuple):
    """A secured broker."""

    plain: str
    """Address without security, whose clients may do everything."""
    addresses: Mapping[str, str]
    """Addresses of `LISTENERS`."""
    authority: Path
    """Certificate of the authority."""
    directory: Path
    issuer: trustme.CA

    def tls(self) -> dict[str, str]:
        """librdkafka properties of a client that trusts the authority."""
        return {"security.protocol": "ssl", "ssl.ca.location": str(self.authority)}

    def mutual(self, name: str) -> dict[str, str]:
        """Properties of a client with a certificate of this name."""
        pem = _write_pem(self.issuer.issue_cert(f"{name}.example", common_name=name), self.directory / f"{name}.pem")
        return {**self.tls(), "ssl.certificate.location": str(pem), "ssl.key.location": str(pem)}

    def login(self, name: str) -> dict[str, str]:
        """Properties of a client that logs in as ``name``, without its password."""
        return {
            **self.tls(),
            "security.protocol": "sasl_ssl",
            "sasl.mechanism": MECHANISM,
            "sasl.username": name,
        }

    def secret_file(self, name: str) -> Path:
        """File with the password of ``name``, as `FRAUD_PIPELINE_KAFKA_CONFIG_FILE` names one."""
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps({"sasl.password": PASSWORDS.format(name)}), encoding="utf-8")
        return path

    def add_users(self, *names: str) -> None:
        """Let these users log in."""
        client = admin_client(self.plain)
        mechanism = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        users = [UserScramCredentialUpsertion(name, mechanism, PASSWORDS.format(name).encode()) for name in names]
        for future in client.alter_user_scram_credentials(users).values():
            future.result()


@contextmanager
def secured_broker(directory: Path) -> Iterator[Secured]:
    """A broker with `LISTENERS`, whose principals may do only what ACLs allow; ended on the way out."""
    issuer = trustme.CA()
    authority = directory / "ca.pem"
    directory.mkdir(parents=True, exist_ok=True)
    issuer.cert_pem.write_to_path(str(authority))
    store = _write_pem(issuer.issue_cert(HOST, "localhost"), directory / "broker.pem")
    addresses: dict[str, str] = {}
    while len(set(addresses.values())) < len(LISTENERS):
        addresses = {name: f"{HOST}:{free_port()}" for name in LISTENERS}
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # Clients of the plain listener, and of the one with TLS alone, have no name.
        "super.users": f"User:ANONYMOUS;User:{SUPER}",
        "allow.everyone.if.no.acl.found": "false",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority),
        "ssl.client.auth": "none",
        "listener.name.mutual.ssl.client.auth": "required",
        "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
        "sasl.enabled.mechanisms": MECHANISM,
        "listener.name.login.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
    }
    listeners = {name: (LISTENERS[name], address) for name, address in addresses.items()}
    with kafka_nodes(directory / "nodes", 1, properties, listeners) as nodes:
        yield Secured(nodes.bootstrap_servers, addresses, authority, directory, issuer)


def _write_pem(certificate: trustme.LeafCert, path: Path) -> Path:
    """Write key and certificates to one file; Kafka wants the key as PKCS #8."""
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(b"".join([pem, *(blob.bytes() for blob in certificate.cert_chain_pems)]))
    return path
