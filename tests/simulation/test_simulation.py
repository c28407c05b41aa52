"""The invariants hold whatever befalls the pipeline, in any order."""

import os

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import SimulatedPipeline

EXAMPLES = int(os.environ.get("SIMULATION_EXAMPLES", "20"))
STEPS = 30


def test_the_invariants_hold_whatever_happens() -> None:
    run_state_machine_as_test(
        SimulatedPipeline,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, derandomize=True, database=None),
    )
