"""The invariants hold whatever befalls the pipeline, in any order."""

import os

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import SimulatedPipeline

EXAMPLES = int(os.environ.get("SIMULATION_EXAMPLES", "20"))
STEPS = 30
LIMIT_S = 30.0
"""Limit for each example; on a loaded machine one takes a second."""


@pytest.mark.timeout(EXAMPLES * LIMIT_S)
def test_the_invariants_hold_whatever_happens() -> None:
    run_state_machine_as_test(
        SimulatedPipeline,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, derandomize=True, database=None),
    )
