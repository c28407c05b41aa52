"""What a callback of the client raises leaves the call during which it was called, as it was raised."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from pipeline.kafka.cluster import clients
from pipeline.kafka.cluster.callbacks import callback
from pipeline.kafka.cluster.clients import consumer_config, producer_config

NOWHERE = "127.0.0.1:1"


def fail_in_c() -> None:
    """Raise as C code does: the exception is not made before a clause catches it."""
    ctypes.pythonapi.PyErr_SetObject(
        ctypes.py_object(KafkaException), ctypes.py_object(KafkaError(KafkaError._FAIL, "the cause"))
    )


def failing(*_: Any) -> None:
    fail_in_c()


@pytest.mark.parametrize("kind", ["error", "delivery"])
def test_the_exception_of_a_callback_is_not_lost_on_its_way_out_of_the_client(kind: str) -> None:
    overrides: dict[str, Any] = {"message.timeout.ms": 100}
    if kind == "error":
        overrides["error_cb"] = failing
    client = Producer(producer_config(NOWHERE, overrides=overrides))
    client.produce("t", b"1", on_delivery=callback(failing) if kind == "delivery" else None)
    with pytest.raises(KafkaException, match="the cause"):
        client.flush(60)


def test_every_configuration_guards_the_callbacks_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def admin_config(_: str, **more: Any) -> dict[str, Any]:
        made: list[dict[str, Any]] = []
        monkeypatch.setattr(clients, "OffsetsClient", lambda config, _reader: made.append(config))
        clients.admin_client(NOWHERE, **more)
        return made[0]

    def consumer(_: str, **more: Any) -> dict[str, Any]:
        return consumer_config(NOWHERE, "group", **more)

    configs: list[Callable[..., dict[str, Any]]] = [consumer, producer_config, admin_config]
    for config in configs:
        for given in (config(NOWHERE), config(NOWHERE, overrides={"error_cb": failing, "on_delivery": failing})):
            callbacks = {name: value for name, value in given.items() if callable(value)}
            assert "error_cb" in callbacks
            assert all(hasattr(value, "__wrapped__") for value in callbacks.values()), callbacks
