"""The online model on the public file of card transactions of ULB and Worldline, row by row: ``creditcard.csv``.

    python -m tests.evaluation.ulb creditcard.csv

The file (Dal Pozzolo, Caelen, Johnson, Bontempi, 2015) has 284,807 rows of two days: ``Time``, 28 principal components
``V1`` to ``V28``, ``Amount``, and ``Class``, 1 for fraud. It names no card and no merchant, so that no feature of the
pipeline can be made of it. Its own columns are the inputs of the online model here, with the layer's scale, bound, rate
and bounded steps, beside constant log-odds as after a cold start. Each row is scored, and then learned. Nothing is
tuned on the file.
"""

import json
import time
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.scoring.blend import sigmoid
from pipeline.scoring.configured_river import build_classifier
from pipeline.scoring.errors import ModelError
from pipeline.scoring.prequential import log_loss, weighted_auc
from pipeline.scoring.river_layer import LEARNING_RATE, Scale
from pipeline.scoring.river_learner import OnlineRegression

COMPONENTS: Final = tuple(f"V{number}" for number in range(1, 29))
COLUMNS: Final = ("Time", *COMPONENTS, "Amount", "Class")
INPUTS: Final = (*COMPONENTS, "Amount")
PRIOR: Final = 0.002
"""Share of frauds of a cold start, by default."""


def read(file: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the inputs, shape (n, len(INPUTS)), and whether each row is fraud, shape (n,).

    Raises:
        click.ClickException: The file lacks a column, or a value.
    """
    frame = pd.read_csv(file)
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise click.ClickException(f"{file} lacks the columns {', '.join(missing)}: give creditcard.csv as published")
    if frame[list(COLUMNS)].isna().to_numpy().any():
        raise click.ClickException(f"{file} lacks values: give creditcard.csv as published")
    inputs = frame[list(INPUTS)].to_numpy(np.float64, copy=True)
    # As the layer takes amounts.
    inputs[:, -1] = np.log1p(inputs[:, -1])
    return inputs, frame["Class"].to_numpy() == 1


def layer_scores(inputs: NDArray[np.float64], fraud: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the score of each row before it was learned, shape (n,), by the regression of the default layer."""
    nothing = (0.0,) * len(INPUTS)
    regression = OnlineRegression(
        INPUTS, LEARNING_RATE, np.zeros(len(INPUTS)), 0.0, Scale(means=nothing, squares=nothing)
    )
    prior, logits = float(np.log(PRIOR / (1.0 - PRIOR))), np.empty(len(fraud))
    for number, (row, is_fraud) in enumerate(zip(inputs, fraud.tolist(), strict=True)):
        logits[number] = regression.logit(row, prior)
        regression.step(row, prior, is_fraud, 1.0)
        regression.add_to_scale(row, 1.0)
    return sigmoid(logits)


def classifier_scores(path: str, inputs: NDArray[np.float64], fraud: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the same by a River classifier, named as for ``FRAUD_PIPELINE_RIVER_CLASSIFIER``."""
    classifier, scores = build_classifier(path), np.empty(len(fraud))
    for number, (values, is_fraud) in enumerate(zip(inputs.tolist(), fraud.tolist(), strict=True)):
        row = dict(zip(INPUTS, values, strict=True))
        scores[number] = classifier.predict_proba_one(row).get(True, 0.0)
        classifier.learn_one(row, is_fraud)
    return scores


def measure(file: Path, classifier: str | None) -> dict[str, Any]:
    """Return the figures of one run over the file."""
    inputs, fraud = read(file)
    started_s = time.process_time()
    scores = layer_scores(inputs, fraud) if classifier is None else classifier_scores(classifier, inputs, fraud)
    seconds, weight = time.process_time() - started_s, np.ones(len(fraud))
    return {
        "rows": len(fraud),
        "frauds": int(fraud.sum()),
        "model": classifier or "default layer",
        "prequential_auc": weighted_auc(fraud, scores, weight),
        "prequential_log_loss": log_loss(fraud, scores, weight),
        "microseconds_per_row": round(1e6 * seconds / max(len(fraud), 1), 1),
    }


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--classifier", help="Dotted path of a River classifier to run in place of the default layer.")
def main(file: Path, classifier: str | None) -> None:
    """Print how well the online model tells the frauds of creditcard.csv before it learns them, as JSON."""
    try:
        click.echo(json.dumps(measure(file, classifier), indent=2))
    except ModelError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
