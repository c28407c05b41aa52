"""The card kernel is compiled before the first batch."""

import subprocess
import sys
from pathlib import Path

from tests.helpers.worker import ROOT, inherited_environment

FIRST_BATCH = """
import gc
import sys
from datetime import UTC, datetime
from pathlib import Path

from numba.core.dispatcher import Dispatcher

from pipeline.engine.card import CardOptions, CardPartition, compile_kernels
from pipeline.state.mapped import MappedStorage
from pipeline.state.store import RocksStore, StoreMemory
from schemas.records import Record
from tests.contract.records import RATES
from tests.helpers.histories import DAY
from tests.helpers.logs import LabelLog, after, label, microseconds, transaction


def compiled():
    return {
        f"{one.py_func.__module__}.{one.py_func.__qualname__}": len(one.overloads)
        for one in gc.get_objects()
        if isinstance(one, Dispatcher)
    }


options = CardOptions(RATES, 300_000_000, 5 * DAY, 8 * DAY, 1)
if "compile" in sys.argv:
    compile_kernels(options)
before = compiled()
directory = Path(sys.argv[1])
store = RocksStore(directory / "store", memory=StoreMemory(32 << 20))
card = CardPartition(options, MappedStorage(directory / "columns"), store)
records = [
    Record("transactions", 0, n, microseconds(after(minutes=n)) // 1_000, b"c1", transaction(n, after(minutes=n)))
    for n in range(5)
]
at = after(minutes=9)
records.append(LabelLog().append(label(3, at, "fraud"), at))
result = card.process(records, datetime.now(UTC))
card.commit()
assert result.counts["accepted", ""] == 5, result.counts
print(sorted(name for name, count in compiled().items() if count != before.get(name, 0)))
"""


def compiled_by_the_first_batch(*arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", FIRST_BATCH, *arguments],
        cwd=ROOT, env={**inherited_environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_nothing_is_compiled_while_the_first_batch_waits(tmp_path: Path) -> None:
    assert compiled_by_the_first_batch(str(tmp_path / "one"), "compile") == "[]"
    assert "profile_cards" in compiled_by_the_first_batch(str(tmp_path / "other"))
