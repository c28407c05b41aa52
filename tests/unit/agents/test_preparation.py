"""All agents' kernels are compiled before any of them joins its group."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.state import kernel_cache
from pipeline.state.kernel_cache import VARIABLE, code_digest, use_shipped_kernels
from tests.helpers.worker import ROOT, inherited_environment

BATCHES = """
import gc
import sys
from pathlib import Path

from numba.core.dispatcher import Dispatcher

from agents.preparation import prepare_kernels
from pipeline.decision.policy import Policy
from pipeline.decision.rules import RuleSet
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.feedback.feedback import FeedbackPartition
from schemas.messages import FeedbackConfig
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from pipeline.state.mapped import MappedStorage
from pipeline.state.segments import FileSegments
from pipeline.state.store import RocksStore, StoreMemory
from tests.contract.records import RATES
from tests.helpers.champion import rule
from tests.helpers.histories import DAY, busy_history, play
from tests.helpers.live import Live
from tests.helpers.models import small_model


def compiled():
    return {
        f"{one.py_func.__module__}.{one.py_func.__qualname__}": len(one.overloads)
        for one in gc.get_objects()
        if isinstance(one, Dispatcher)
    }


directory = Path(sys.argv[1])
imported = compiled()
of_bank = {"labels": ("analyst",), "chargebacks": ("chargeback",)}
prepare_kernels(Settings(label_topics=of_bank), RATES, directory / "prepare")
assert not (directory / "prepare").exists()
prepared = compiled()
base = small_model()
rules = RuleSet([rule("any", "amount > 1000 and country = 'DE'")])
models = ActiveModels(base, first_river(), Policy(0.5, blend=0.7, audit_rate=0.05), rules=rules)
options = CardOptions(RATES, 300_000_000, 5 * DAY, 8 * DAY, 1)
feedback = FeedbackConfig(label_horizon_us=8 * DAY, maturity_us=5 * DAY, negative_sample_rate=0.5)
live = Live(models, options, feedback)
# On disk, as in a worker.
memory = StoreMemory(32 << 20)
stores = [RocksStore(directory / name, memory=memory) for name in ("card", "feedback")]
live._cards = [CardPartition(options, MappedStorage(directory / "columns"), stores[0])]
live._feedbacks = [FeedbackPartition(feedback, stores[1], None, FileSegments(directory / "segments"))]
play(busy_history(1, 200), live, publish_every_us=DAY)
assert live.decisions and live.alerts and live.examples
for before, now in ((imported, prepared), (prepared, compiled())):
    print(*sorted(name for name, count in now.items() if count != before.get(name, 0)))
"""


def test_nothing_is_compiled_while_batches_wait(tmp_path: Path) -> None:
    environment = {**inherited_environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BATCHES, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    prepared, behind_the_first_batch = ran.stdout.split("\n")[:2]
    for function in ("profile_cards", "profile_merchants", "block_columns", "river_layer", "segment_tables"):
        assert function in prepared
    assert behind_the_first_batch == ""


def test_the_command_that_the_build_of_an_image_runs() -> None:
    result = CliRunner().invoke(main, ["compile"])
    assert (result.exit_code, result.output) == (0, "")


def test_a_shipped_cache_is_copied_once_for_each_state_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, volume = tmp_path / "shipped", tmp_path / "volume"
    (shipped / "engine").mkdir(parents=True)
    (shipped / "engine/kernel.nbi").write_bytes(b"compiled")
    monkeypatch.setenv(VARIABLE, str(volume))
    use_shipped_kernels(shipped)
    own = volume / code_digest()
    assert os.environ[VARIABLE] == str(own)
    assert (own / "engine/kernel.nbi").read_bytes() == b"compiled"
    assert list(volume.iterdir()) == [own]
    # A process that it starts, and a later one: what Numba has added stays.
    (own / "engine/kernel.nbi").write_bytes(b"compiled here")
    for variable in (own, volume):
        monkeypatch.setenv(VARIABLE, str(variable))
        use_shipped_kernels(shipped)
        assert os.environ[VARIABLE] == str(own)
    assert (own / "engine/kernel.nbi").read_bytes() == b"compiled here"
    # A release whose code is another one finds nothing of it.
    monkeypatch.setattr(kernel_cache, "code_digest", lambda: "another")
    monkeypatch.setenv(VARIABLE, str(volume))
    use_shipped_kernels(shipped)
    assert (volume / "another/engine/kernel.nbi").read_bytes() == b"compiled"


@pytest.mark.parametrize("cache", [None, "shipped"])
def test_a_checkout_and_the_build_of_an_image_keep_the_cache_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str | None
) -> None:
    (tmp_path / "shipped").mkdir()
    if cache is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, str(tmp_path / cache))
    before = os.environ.get(VARIABLE)
    use_shipped_kernels(tmp_path / "shipped")
    use_shipped_kernels(tmp_path / "missing")
    assert os.environ.get(VARIABLE) == before


def test_the_image_ships_what_the_command_compiles_for_any_processor() -> None:
    build, image = (ROOT / "Dockerfile").read_text(encoding="utf-8").split("\nFROM ")[1:]
    shipped = "/opt/venv/share/fraud-pipeline/kernels"
    assert Path(sys.prefix, "share/fraud-pipeline/kernels") == kernel_cache.SHIPPED
    assert f"RUN NUMBA_CACHE_DIR={shipped} NUMBA_CPU_NAME=${{NUMBA_CPU_NAME}} fraud-pipeline compile" in build
    # Numba finds compiled code by the paths of sources, and by the processor's name.
    assert "COPY --from=build /opt/venv /opt/venv" in image
    for stage in (build, image):
        assert "ARG NUMBA_CPU_NAME=generic" in stage
    assert "NUMBA_CPU_NAME=${NUMBA_CPU_NAME}" in image
    assert "NUMBA_CACHE_DIR=/data/numba" in image
