"""No bytes on ``profiled`` end the process that reads them."""

import subprocess
import sys

from tests.helpers.worker import ROOT

COUNT = 4_500


def test_a_damaged_block_is_refused_or_read_and_never_ends_the_process() -> None:
    command = [sys.executable, "-m", "tests.helpers.block_fuzz", str(COUNT)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    refused, decided, other = map(int, ended.stdout.split())
    assert refused + decided + other == COUNT
    assert min(refused, decided) > COUNT / 20
    assert other > 0
