"""Versions on the simulated cluster: their contents, and what makes them active."""

from datetime import UTC
from functools import cache
from typing import Final

from pipeline.engine.feedback.learn import model_record
from pipeline.kafka.session.quarantine import control_record
from pipeline.models.publish import VersionToPublish
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import payload_digest
from pipeline.settings.rate_table import read_rates
from schemas.messages import Activation, LearningSwitch, VersionReference
from tests.helpers.champion import policy
from tests.helpers.models import small_model
from tests.simulation.names import PREFIX
from tests.simulation.world import World

LIGHTGBM: Final = ("lightgbm one", "lightgbm two")
POLICIES: Final = ("policy one", "policy two")


@cache
def content_of(name: str) -> VersionToPublish:
    """Return one of the versions that a simulation publishes."""
    if name in LIGHTGBM:
        payload = small_model().to_payload()
        if name == LIGHTGBM[1]:
            payload = payload.replace(b'"slope":0.8', b'"slope":0.9')
        return VersionToPublish("lightgbm", LightGBMModel.from_payload(payload).version, payload)
    made = policy(0.6 if name == POLICIES[0] else 0.4)
    return VersionToPublish("policy", made.version, made.payload)


def write_content(world: World, content: VersionToPublish) -> None:
    output = model_record(content.name, content.version, content.payload, world.clock.now(UTC))
    world.cluster.write(PREFIX + "models", 0, output.key, output.value)


def activate(world: World, *contents: VersionToPublish) -> None:
    """Make versions active, whether or not their contents are there."""
    references = [
        VersionReference(name=content.name, version=content.version, digest=payload_digest(content.payload), offset=0)
        for content in contents
    ]
    output = control_record(Activation(versions=references, activated_at=world.clock.now(UTC)))
    world.cluster.write(PREFIX + "control", 0, output.key, output.value)


def switch_learning(world: World, *, frozen: bool) -> None:
    """Freeze learning, or let it go on."""
    switch = LearningSwitch(frozen=frozen, by="dana", reason="A test.", switched_at=world.clock.now(UTC))
    output = control_record(switch)
    world.cluster.write(PREFIX + "control", 0, output.key, output.value)


def publish_first(world: World) -> None:
    """Publish what a worker needs to start: a rate table, a model and a policy."""
    rates = VersionToPublish("rates", "indicative-1", read_rates(world.settings("any")).strip())
    contents = [rates, content_of(LIGHTGBM[0]), content_of(POLICIES[0])]
    for content in contents:
        write_content(world, content)
    activate(world, *contents)
