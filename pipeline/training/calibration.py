"""Platt scaling: from a margin to log-odds that mean what they say."""

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.blend import sigmoid
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import Calibration


def fit_platt(
    margin: NDArray[np.float64], fraud: NDArray[np.bool_], weight: NDArray[np.float64], iterations: int = 100
) -> Calibration:
    """Fit a calibration to outcomes; arrays of shape (n,).

    Targets are drawn in from 0 and 1 as in Platt, "Probabilistic Outputs for Support Vector Machines" (1999), so that
    few frauds cannot make it certain; ``weight`` undoes a sampling of legitimate transactions. Raises `ModelError` when
    there are no frauds or nothing else, and as `fit_probabilities`.
    """
    positive, negative = float(weight[fraud].sum()), float(weight[~fraud].sum())
    if not fraud.any() or fraud.all():
        raise ModelError(
            f"{int(fraud.sum())} of {len(fraud)} transactions of the validation period are fraud; calibration needs "
            "both kinds: widen the period with --validation-days"
        )
    target = np.where(fraud, (positive + 1.0) / (positive + 2.0), 1.0 / (negative + 2.0))
    return fit_probabilities(margin, target, weight, iterations)


def fit_probabilities(
    margin: NDArray[np.float64], target: NDArray[np.float64], weight: NDArray[np.float64], iterations: int = 100
) -> Calibration:
    """Fit sigmoid(slope x margin + intercept) to probabilities by maximum likelihood, with Newton's method.

    Args:
        margin: Log-odds of the trees; shape (n,).
        target: Probabilities of fraud; shape (n,).
        weight: Shape (n,).
        iterations: Most steps.

    Raises:
        ModelError: The method does not converge, or higher margins do not mean more fraud.
    """
    design = np.column_stack((margin, np.ones(len(margin))))
    parameters = np.array([1.0, 0.0])
    loss = _loss(design @ parameters, target, weight)
    for _ in range(iterations):
        probability = sigmoid(design @ parameters)
        gradient = design.T @ (weight * (probability - target))
        curvature = weight * np.maximum(probability * (1.0 - probability), 1e-12)
        step = np.linalg.solve((design * curvature[:, None]).T @ design + 1e-9 * np.eye(2), gradient)
        scale = 1.0
        while True:
            tried = parameters - scale * step
            tried_loss = _loss(design @ tried, target, weight)
            if tried_loss <= loss or scale < 1e-6:
                break
            scale /= 2.0
        converged = loss - tried_loss <= 1e-12 * max(loss, 1.0)
        if tried_loss <= loss:
            parameters, loss = tried, tried_loss
        if converged:
            break
    else:
        raise ModelError(
            f"the calibration did not converge in {iterations} steps: widen the validation period (--validation-days) "
            "or check the labels"
        )
    slope, intercept = (float(value) for value in parameters)
    if slope <= 0:
        raise ModelError(
            "on the validation period higher scores do not mean more fraud, so the model learned nothing that lasts: "
            "train on more days (--train-from) or check the labels"
        )
    return Calibration(slope=slope, intercept=intercept)


def _loss(logit: NDArray[np.float64], target: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    # log(1 + exp(x)) - target x x, without overflow.
    return float(np.sum(weight * (np.logaddexp(0.0, logit) - target * logit)))
