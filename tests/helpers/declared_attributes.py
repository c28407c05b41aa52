"""A deployment with declared attributes: ``python -m tests.helpers.declared_attributes`` decides with them.

They are declared by a file before anything of the pipeline is imported, and nothing else is changed. Prints what came
out as a JSON object.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

NAMES: Final = ("device_risk", "basket")
FEATURE_NAMES: Final = tuple(f"attribute_{name}" for name in NAMES)
DAYS: Final = 40


def declaration() -> str:
    """Return a file that declares `NAMES`, beside all built-in features, which examples of the tests have."""
    meanings = {name: f"{name.replace('_', ' ')} by the producer" for name in NAMES}
    tables = (f'[fields.{name}]\ntype = "number"\nmeaning = "{meaning}"\n' for name, meaning in meanings.items())
    return "\n".join(('extends = "all"\n', *tables))


def history() -> pd.DataFrame:
    """Return simulated days in which a device's risk tells most frauds; a value in five is missing.

    Baskets are large, and one is beyond measure.
    """
    from tests.helpers.backtest_inputs import simulated_days

    frame, random = simulated_days(DAYS, cards=30), np.random.default_rng(3)
    # Fraud that nothing else tells.
    frame["fraud"] = random.random(len(frame)) < 0.05
    risk = random.normal(size=len(frame)) + 4.0 * frame["fraud"]
    frame["attribute_device_risk"] = np.where(random.random(len(frame)) < 0.2, np.nan, risk)
    frame["basket"] = 2.5e6 + random.integers(1, 9, len(frame))
    frame.loc[100, "basket"] = 1e300
    return frame.drop(columns="fraud_type")


def main() -> None:
    """Train, score and learn with the attributes: live in memory, from a file, and from an export."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(declaration())
        file.flush()
        os.environ["FRAUD_PIPELINE_FEATURES_FILE"] = file.name
        import pipeline  # noqa: F401 (which declares them)
    del os.environ["FRAUD_PIPELINE_FEATURES_FILE"]
    from pipeline.backtest import file_tables, replay
    from pipeline.engine.cards.card_options import CardOptions
    from pipeline.engine.scores.active_models import ActiveModels
    from pipeline.features.catalogue import CARD_FEATURES, DEFAULT_FEATURES, FEATURES
    from pipeline.history.files import resolve_mapping
    from pipeline.learning.regimes import LabelRegime
    from pipeline.models.registry import LIGHTGBM, POLICY, Registry
    from pipeline.replay.messages import event_times_us, transaction_messages
    from pipeline.scoring.configured_river import ConfiguredRiverLearner
    from pipeline.scoring.river_factory import first_river
    from pipeline.scoring.river_inputs import INPUTS
    from pipeline.settings import Settings
    from pipeline.training.cohorts import split_cohorts
    from pipeline.training.fit import TrainingConfig, train
    from schemas.codec import encode
    from schemas.messages import FeedbackConfig
    from schemas.topics import TRANSACTIONS
    from tests.contract.records import RATES
    from tests.helpers.backtest_inputs import backtest_of
    from tests.helpers.exported import export
    from tests.helpers.features import history_of
    from tests.helpers.files import load_transactions
    from tests.helpers.histories import DAY
    from tests.helpers.live import Live, moment
    from tests.helpers.models import example

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "history.csv"
        history().to_csv(path, index=False)
        frame = load_transactions(path, resolve_mapping(path))
        data = history_of(frame, LabelRegime(delay_days=1.0)).training_set()
        split = split_cohorts(data.event_time_us, label_delay_us=DAY, validation_us=10 * DAY)
        trained = train(data, split, alerts_per_day=20.0, config=TrainingConfig(trees=60, early_stopping_rounds=0))
        models = ActiveModels(trained.model, first_river(), trained.policy)
        card = CardOptions(RATES, 300_000_000, 60 * DAY, 60 * DAY, 1)
        live = Live(
            models, card, FeedbackConfig(label_horizon_us=60 * DAY, maturity_us=30 * DAY, negative_sample_rate=1.0)
        )
        values, messages, times_us = [], [], event_times_us(frame)
        for message, time_us in zip(transaction_messages(frame, times_us), times_us.tolist(), strict=True):
            # An export keeps the bytes of a record that has more than the contract.
            values.append(encode(message)[:-1] + b',"more":{}}' if len(values) % 50 == 0 else encode(message))
            messages.append(json.loads(values[-1]))
            live.transaction(messages[-1], time_us)
        for message, fraud, time_us in zip(messages, frame["fraud"].tolist(), times_us.tolist(), strict=True):
            label = {"label": "fraud" if fraud else "legitimate", "source": "analyst"}
            known_us = int(times_us[-1]) + 1_000 * len(live.examples)
            names = {name: message[name] for name in ("transaction_id", "card_id")}
            live.label({**names, **label, "labelled_at": moment(max(known_us, time_us)).isoformat()}, known_us)
        decided = pd.concat([part.frame(features=True) for part in replay(models, file_tables(path), options=card)])
        settings = Settings(data_dir=directory / "data", kafka_bootstrap_servers=None, timestamps="producer")
        registry = Registry(settings.registry_path)
        registry.activate(LIGHTGBM, registry.register(LIGHTGBM, trained.model.to_payload()))
        registry.activate(POLICY, registry.register(POLICY, trained.policy.to_payload()))
        export(directory / "export", TRANSACTIONS, values, (times_us // 1_000).tolist())
        exported = backtest_of(
            directory / "export", settings=settings, models={"now": "active"}, labels="recorded"
        ).run()
        learner = ConfiguredRiverLearner("tests.unit.scoring.test_river_configured.scaled_regression")
        rows = [dict.fromkeys(FEATURES, 1.0) | {"attribute_device_risk": float(number % 2)} for number in range(200)]
        learner.learn_examples(
            example(number, label="fraud" if number % 2 else "legitimate", features=row, logit=0.0, weight=1.0)
            for number, row in enumerate(rows)
        )
        two = np.array([[*rows[0].values()], [*rows[1].values()]])
        layer = live.learn.publish()
        live_features = [decision.features or {} for decision in live.decisions]
        columns = [f"feature_{name}" for name in FEATURES]
        reported: dict[str, Any] = {
            "defaults": DEFAULT_FEATURES,
            "gain_share": trained.model.gain_shares["attribute_device_risk"],
            "given": [message.get("attributes") for message in messages],
            "live": [[features[name] for name in FEATURE_NAMES] for features in live_features],
            "unequal": [
                name
                for name, column in zip(FEATURES, columns, strict=True)
                if not np.array_equal(
                    np.array([features[name] for features in live_features], float),
                    decided[column].to_numpy(float),
                    equal_nan=True,
                )
            ],
            "untrained": [
                name
                for name, column, own in zip(CARD_FEATURES, columns, data.features.T, strict=False)
                if not np.array_equal(own, decided[column].to_numpy(float), equal_nan=True)
            ],
            "live_scores": [decision.score for decision in live.decisions],
            "file_scores": decided["score"].tolist(),
            "export_scores": exported.variants[0].decisions["score"].tolist(),
            "examples": [[example.label, example.features.get("attribute_device_risk")] for example in live.examples],
            "weights": dict(zip(INPUTS, layer.weights.tolist(), strict=True)),
            "reasons": [[reason.code, reason.sentence] for alert in live.alerts for reason in alert.reasons],
            "classifier": learner.snapshot(200).logit(two, np.zeros(2)).tolist(),
        }
    json.dump(reported, sys.stdout, default=str)


if __name__ == "__main__":
    main()
