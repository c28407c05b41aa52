"""A third kind of model, added as ``CONTRIBUTING.md`` says: ``python -m tests.helpers.third_kind`` decides with it.

The lines of the list are put into the sources of `pipeline.scoring.kinds` and `schemas.messages` in memory, before
anything else imports them, and nothing else is changed. Prints what came out as a JSON object.
"""

import hashlib
import importlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

NAME: Final = "limit"
WEIGHT: Final = 0.5
BLEND: Final = 0.25
EDITS: Final[Mapping[str, Mapping[str, str]]] = {
    "schemas.messages": {
        "    river: float\n": "    river: float\n    limit: float | None = None\n",
        "    lightgbm: str\n    river: str\n": "    lightgbm: str\n    river: str\n    limit: str = 'none'\n",
    },
    "pipeline.scoring.kinds": {
        "from pipeline.scoring.errors import ModelError\n": (
            "from pipeline.scoring.errors import ModelError\nfrom tests.helpers.third_kind import Limit\n"
        ),
        "(LIGHTGBM, RIVER)\n": """(
            LIGHTGBM,
            RIVER,
            ModelKind(
                "limit", "Limit", ScoreReason("OVER_LIMIT", "The limit.", "Over the limit{evidence}.", "Below."), Limit
            ),
        )\n""",
    },
}
"""The lines to replace in each module."""


class Limit:
    """A scorer: the amount, which is the first feature, decides alone."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._limit = float(msgspec.json.decode(payload)["limit"])
        self.version = hashlib.sha256(payload).hexdigest()[:12]

    def logit(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return 3 from the limit on, else -3."""
        del base_logit
        return np.where(features[:, 0] >= self._limit, 3.0, -3.0)

    def evidence(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> list[str]:
        """Name the limit."""
        del features
        return [f"{self._limit:g}"] * len(base_logit)

    def to_payload(self) -> bytes:
        """Return the limit as JSON."""
        return self._payload


def install() -> None:
    """Load the modules of `EDITS` with their lines replaced."""
    for name, edits in EDITS.items():
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or name in sys.modules:
            raise RuntimeError(f"{name} is missing, or imported already")
        source = Path(spec.origin).read_text(encoding="utf-8")
        for old, new in edits.items():
            if source.count(old) != 1:
                raise RuntimeError(f"{name} has {source.count(old)} times {old!r}")
            source = source.replace(old, new)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        exec(compile(source, spec.origin, "exec"), module.__dict__)
        parent, _, child = name.rpartition(".")
        setattr(importlib.import_module(parent), child, module)


def main() -> None:
    """Decide transactions with three models, live and in a backtest."""
    install()
    from pipeline.backtest import Order, replay
    from pipeline.backtest.runner.model_library import ModelLibrary
    from pipeline.engine.cards.card_options import CardOptions
    from pipeline.engine.feedback.learn import model_record
    from pipeline.engine.scores.decider import Decider
    from pipeline.engine.scores.decision_records import read_feature_messages
    from pipeline.exports.feature_rows import FeatureRowFormat
    from pipeline.models.activation import Activations
    from pipeline.models.registry import Registry
    from pipeline.observability.metrics import WorkerMetrics
    from pipeline.settings import Settings
    from schemas.messages import Activation, ModelVersion, VersionReference
    from schemas.records import Record
    from schemas.topics import ALERTS, DECISION_FEATURES, DECISIONS, TRANSACTIONS
    from tests.contract.records import RATES
    from tests.helpers.champion import empty_model_set, policy
    from tests.helpers.histories import DAY, busy_history, transactions
    from tests.helpers.logs import START, Log, after, to, transaction
    from tests.helpers.models import small_model
    from tests.unit.engine.test_engine_score import NOW, profile, score

    weighted = policy(0.2, blend=BLEND, weights={NAME: WEIGHT})
    payloads = {
        "lightgbm": small_model().to_payload(),
        "policy": weighted.to_payload(),
        NAME: b'{"limit": 100}',
    }
    contents: dict[str, ModelVersion] = {}
    activations = Activations(lambda name: sys.exit(f"{name} is refused"))
    model_sets = [empty_model_set()]
    for names in (("lightgbm", "policy"), (NAME,)):
        references = []
        for name in names:
            record = model_record(name, hashlib.sha256(payloads[name]).hexdigest()[:12], payloads[name], START)
            version = msgspec.json.decode(record.value or b"", type=ModelVersion)
            contents[version.digest] = version
            references.append(VersionReference(name=name, version=version.version, digest=version.digest, offset=0))
        activations.add(Activation(versions=references, activated_at=START))
        model_sets.append(activations.apply(model_sets[-1], lambda reference: contents[reference.digest]))
    without, models = model_sets[1].active, model_sets[2].active
    if without is None or models is None:
        raise RuntimeError("nothing is active")
    source = Log(TRANSACTIONS)
    for number in range(40):
        at = after(hours=number)
        source.append(transaction(number, at, amount=10.0 * number + 10), at)
    result = Decider("EUR", 1, all_features=True).process([(score(), profile(source.records).records)], models, NOW)
    (block,) = to(DECISION_FEATURES, result)
    options = CardOptions(RATES, 300_000_000, 5 * DAY, 8 * DAY, 2)
    history = [transactions(busy_history(1, 50))]
    frame = next(replay(models, history, options=options, order=Order.RECORDED)).frame()
    with tempfile.TemporaryDirectory() as directory:
        registry = Registry(Path(directory))
        for name, payload in payloads.items():
            registry.register(name, payload, {})
        found = ModelLibrary(Settings(registry_dir=directory)).named(models.versions("1"))
    reported: dict[str, Any] = {
        "decisions": [msgspec.json.decode(output.value or b"") for output in to(DECISIONS, result)],
        "alerts": [msgspec.json.decode(output.value or b"") for output in to(ALERTS, result)],
        "rows": [msgspec.to_builtins(row.versions) for row in read_feature_messages(block.value)],
        "exported": FeatureRowFormat().rows([Record("features", 0, 0, 0, None, block.value)]).to_pydict(),
        "frame": frame[[NAME, f"{NAME}_version"]].to_dict("list"),
        "unpublished": msgspec.to_builtins(without.versions("1")),
        "found": msgspec.to_builtins(found.versions("1")),
        "changes": WorkerMetrics().registry.get_sample_value("fraud_pipeline_model_changes_total", {"model": NAME}),
    }
    json.dump(reported, sys.stdout, default=str)


if __name__ == "__main__":
    main()
