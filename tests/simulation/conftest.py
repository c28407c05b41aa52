"""A world with a worker."""

from collections.abc import Iterator

import pytest

from tests.simulation.activation import publish_first
from tests.simulation.world import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World(snapshots=False)
    made.tick(1)
    publish_first(made)
    made.start(0)
    yield made
    made.close()
