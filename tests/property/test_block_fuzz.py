"""No bytes on ``profiled`` end the process that reads them."""

import subprocess
import sys

import pytest

from tests.helpers.recording import ROOT

COUNT = 1_500


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_block_is_refused_or_read_and_never_ends_the_process(seed: int) -> None:
    command = [sys.executable, "-m", "tests.helpers.block_fuzz", str(seed), str(COUNT)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    refused, decided, other = map(int, ended.stdout.split())
    assert refused + decided + other == COUNT
    assert min(refused, decided) > COUNT / 20
    assert other > 0
