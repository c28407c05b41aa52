"""Fit, calibrate and measure a LightGBM version from matrices. Deterministic for a seed and a number of threads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, NamedTuple

import lightgbm
import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pipeline.decision.budget import case_numbers, case_threshold
from pipeline.decision.policy import Policy
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.learning.sampling import TRAINING_SAMPLE, sample_positions
from pipeline.learning.trained_labels import LABELS, TrainedLabels
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.distributions import distributions_of
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.trees import MOST_LEAVES, MOST_TREES
from pipeline.training.calibration import fit_platt, fit_probabilities
from pipeline.training.cohorts import Split, TrainingSet, rolling_folds
from pipeline.training.early_reports import EarlyReports, Targets
from pipeline.training.negatives import sampling_rates
from pipeline.training.score_metrics import auc_roc
from pipeline.training.validation import input_digest, measured, sensitivity, validation_record
from schemas.times import US_PER_DAY

LEAST_FRAUDS: Final = 10
LEAST_AUC: Final = 0.55
"""Area under the ROC curve on the validation period below which a model says no more than chance."""
LEGITIMATE_PER_FRAUD: Final = 10
"""Legitimate rows to grow on for each fraud, at least, where there are so many."""
PILOT_LEARNING_RATE: Final = 0.1
_SCORED_ROWS: Final = 65_536
"""Rows that the pilot scores at a time."""
LEAST_RECENCY: Final = 0.05
"""Least weight that age leaves to a transaction, so that a kind of fraud that comes seldom is not forgotten."""
DEFAULT_BUDGET: Final = 100.0
"""Cases a day that a threshold is chosen for, where nobody says how many."""


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The hyperparameters of the trees. The defaults suit some 10 frauds a day and more; see ``docs/models.md``."""

    trees: Annotated[int, Meta(ge=1, le=MOST_TREES, description="At most.")] = 400
    leaves: Annotated[int, Meta(ge=2, le=MOST_LEAVES, description="Of a tree.")] = 15
    learning_rate: Annotated[float, Meta(gt=0, description="Shrinkage of each tree.")] = 0.03
    rows_per_leaf: int = 20
    feature_fraction: float = 1.0
    row_fraction: float = 0.8
    l2: float = 5.0
    early_stopping_rounds: int = 50
    """Trees without an improvement on the validation period after which no more are grown; 0: grow ``trees``."""
    legitimate_rows: Annotated[
        int, Meta(ge=1, description="Sample about so many legitimate transactions to grow trees on.")
    ] = 100_000
    """About so many legitimate rows are grown on, or `LEGITIMATE_PER_FRAUD` for each fraud; weights make up for it."""
    pilot_trees: Annotated[
        int,
        Meta(
            ge=0,
            le=MOST_TREES,
            description="Of a pilot: legitimate transactions that it takes for fraud are sampled more often; 0: all "
            "alike.",
        ),
    ] = 50
    half_life_days: Annotated[
        float,
        Meta(ge=0, description="Age at which a transaction weighs half as much to grow trees; 0: all weigh alike."),
    ] = 60.0
    """No weight falls below `LEAST_RECENCY`; calibration, threshold and metrics weigh all transactions alike."""
    threads: Annotated[int, Meta(ge=1, description="To train.")] = 1
    """LightGBM's threads spin while they wait: more of them than free cores are slower than one."""
    seed: Annotated[int, Meta(ge=0, description="Of all sampling.")] = 20_180_401


@dataclass(frozen=True, slots=True)
class Trained:
    """A LightGBM version with a policy made for it, and how it did on the validation period."""

    model: LightGBMModel
    policy: Policy
    metrics: dict[str, Any]


def train(
    data: TrainingSet,
    split: Split,
    *,
    alerts_per_day: float = DEFAULT_BUDGET,
    config: TrainingConfig | None = None,
    policy: Policy | None = None,
    features: Sequence[str] = DEFAULT_FEATURES,
    details: dict[str, Any] | None = None,
    early: EarlyReports | None = None,
    labels: TrainedLabels | None = None,
    force: bool = False,
    wrong_labels: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train a version and make a policy for it.

    Trees that are grown on the earlier rows of ``split`` are checked on the later ones, which choose the number of
    trees and the calibration, and give the metrics. The version itself has as many trees, grown on all rows of both
    periods: the newest ones inform most about what comes next. On the young rows, which need no labels for it, its
    calibration follows the scores of the checked trees, and its own scores choose the threshold. If these days are
    few, both are those of the checked trees. With ``early`` the version is grown on the young rows too, as
    `EarlyReports.targets` weighs them by the scores of the checked trees, whose calibration it keeps.

    Args:
        data: Transactions with what they turned out to be.
        split: Rows to train on, and later ones to check on.
        alerts_per_day: Budget of cases that the threshold keeps.
        config: How the trees are grown.
        policy: Gives blend and audit rate of the new policy.
        features: The features that trees may ask for; the model keeps how they are distributed.
        details: Further metadata of the model.
        early: Reports of rows that are too young for ``split``; without, such rows are not trained on.
        labels: The labels of the training, for the model's metadata.
        force: Make a version although it ranks frauds hardly better than chance.
        wrong_labels: Train again on wrong labels, and keep how the training does then.
        report: Called now and then with how far it is, in words.

    Raises:
        ModelError: A period holds too few frauds, or the trees learned nothing that holds in the validation period.
    """
    config = config or TrainingConfig()
    _check_kinds(data, split)
    trees = _Trees(data, config, features)
    checked = split.validation
    first, rounds = trees.grown_until_best(split.training, checked, report)
    margin, fraud, weight = first.margin(data.wide(checked)), data.fraud[checked], data.weight[checked]
    _check_learned(margin, fraud, weight, force=force)
    calibration = fit_platt(margin, fraud, weight)
    score = sigmoid(calibration.slope * margin + calibration.intercept)
    # Of ordered rows this is a walk over them, where a union would sort them anew.
    rows = np.sort(np.concatenate([split.training, checked]), kind="stable")

    def probability(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        return sigmoid(calibration.slope * first.margin(data.wide(rows)) + calibration.intercept)

    young, grown_on = None, data
    if early is not None and data.reported_us is not None:
        last_us = int(data.event_time_us[rows].max())
        young = early.targets(data.event_time_us, data.reported_us, probability, last_us)
    if young is not None and len(young.rows):
        grown_on, rows = _with_targets(data, young), np.union1d(rows, young.rows)
        details = {"early": _describe_early(young), **(details or {})}
    report(f"growing {rounds} trees on both periods")
    final = _Trees(grown_on, config, features, trees.pilot).grown(rows, rounds)
    newest, days = split.newest(data.event_time_us)
    case = case_numbers(data.card[newest], data.event_time_us[newest])
    newest_score = score
    if newest is not checked:
        final_margin = LightGBMModel(final).margin(data.wide(newest))
        if grown_on is data:
            # Trees of more rows are surer; on days that neither have seen they get the scores of the checked ones.
            calibration = fit_probabilities(final_margin, probability(newest), data.weight[newest])
        newest_score = sigmoid(calibration.slope * final_margin + calibration.intercept)
    threshold = case_threshold(newest_score, case, days, alerts_per_day, data.weight[newest])
    metrics = measured(data, split, score, threshold)
    metadata = {
        "training": msgspec.to_builtins(config),
        "periods": split.describe(data.event_time_us),
        "frauds": {"training": int(data.fraud[split.training].sum()), "validation": int(fraud.sum())},
        **({} if labels is None else {LABELS: labels.describe(data.event_time_us[rows], grown_on.fraud[rows])}),
        **(details or {}),
        "metrics": metrics,
        "input": {"rows": len(rows), "digest": input_digest(grown_on, rows, features)},
        **validation_record(data, split, score, threshold, trees.sampled(split.training), features),
        **({"sensitivity": _sensitivity(data, split, config, features)} if wrong_labels else {}),
    }
    distributions = distributions_of(data.features, data.weight, features, rows, held=data.names)
    model = LightGBMModel(final, calibration, metadata, distributions=distributions)
    base = policy or Policy(0.5)
    new_policy = base.replace(
        threshold=threshold,
        lightgbm_version=model.version,
        metadata={
            "alerts_per_day": alerts_per_day,
            "validation_days": split.validation_us / US_PER_DAY,
            "threshold_days": round(days, 3),
        },
    )
    return Trained(model, new_policy, metrics | {"trees": model.trees})


def with_trees_of_folds(
    data: TrainingSet,
    split: Split,
    config: TrainingConfig,
    features: Sequence[str],
    label_delay_us: int,
    folds: int,
) -> TrainingConfig:
    """Return a configuration with the number of trees that is best on rolling folds, and no early stopping.

    A week is too short to choose their number. The number belongs to the recipe: later trainings by it grow as many.

    Args:
        data: Transactions with what they turned out to be.
        split: Its rows are cut into folds (`rolling_folds`); each checks on a period as long as its validation.
        config: How the trees are grown; its number of trees is the largest that is tried.
        features: The features that trees may ask for.
        label_delay_us: Microseconds from a transaction to its label; a fold trains on rows that are older.
        folds: Number of folds, over which the average precision after each tree is averaged.

    Raises:
        ModelError: The history is too short, or a fold holds too few frauds.
    """
    parts = rolling_folds(data.event_time_us, split, label_delay_us, folds)
    for part in parts:
        _check_kinds(data, Split(*part, split.validation_us))
    trees = _Trees(data, config, features)
    curve = np.mean([trees.precision_by_trees(*part) for part in parts], axis=0)
    return msgspec.structs.replace(config, trees=int(np.argmax(curve)) + 1, early_stopping_rounds=0)


def _check_kinds(data: TrainingSet, split: Split) -> None:
    """Raise `ModelError` where a period holds too few frauds, or nothing else."""
    for name, rows in (("training", split.training), ("validation", split.validation)):
        frauds = int(data.fraud[rows].sum())
        if frauds < LEAST_FRAUDS or frauds == len(rows):
            raise ModelError(
                f"the {name} period holds {frauds} frauds among {len(rows)} labelled transactions; at least "
                f"{LEAST_FRAUDS} of each kind are needed: choose a longer period (--train-from, --validation-days)"
            )


def _with_targets(data: TrainingSet, targets: Targets) -> TrainingSet:
    """Return the training set with other targets in some rows; ``weight`` multiplies what a row stands for."""
    fraud, weight = data.fraud.copy(), data.weight.copy()
    fraud[targets.rows] = targets.fraud
    weight[targets.rows] *= targets.weight
    return replace(data, fraud=fraud, weight=weight)


def _describe_early(targets: Targets) -> dict[str, Any]:
    return {
        "rows": len(targets.rows),
        "frauds": int(np.count_nonzero(targets.fraud)),
        "weight": round(float(targets.weight.sum()), 3),
        "fraud_weight": round(float(targets.weight[targets.fraud].sum()), 3),
    }


class _Pilot(NamedTuple):
    """Trees that score rows of a training set, each once."""

    trees: LightGBMModel
    known: NDArray[np.float64]
    """Scores of all rows, shape (n,); NaN where nobody has asked."""

    def scores(self, data: TrainingSet, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the scores of some rows; shape (len(rows),)."""
        new = rows[np.isnan(self.known[rows])]
        for start in range(0, len(new), _SCORED_ROWS):
            part = new[start : start + _SCORED_ROWS]
            self.known[part] = sigmoid(self.trees.margin(data.wide(part)))
        return self.known[rows]


class _Trees:
    """Grows trees on some rows of a training set.

    Args:
        data: The training set.
        config: How trees are grown.
        features: The features that trees may ask for.
        pilot: Scores rows to sample them; without, it is grown on the first rows that are sampled.
        sample: Name of the sample that legitimate rows are drawn by.
    """

    def __init__(
        self,
        data: TrainingSet,
        config: TrainingConfig,
        features: Sequence[str],
        pilot: "_Pilot | None" = None,
        sample: str = TRAINING_SAMPLE,
    ) -> None:
        self._data, self._config, self._features, self.pilot = data, config, features, pilot
        # By identity: whatever the history begins with, the same transactions are drawn.
        self._draws = sample_positions(data.identity.astype(np.uint64), f"{sample}/{config.seed}")
        # A column of one value is never asked for: the trees are those of a kernel with all its features all the same.
        self._others = [column for column, name in enumerate(FEATURES) if name not in features]

    def grown_until_best(
        self, training: NDArray[np.intp], validation: NDArray[np.intp], report: Callable[[str], None] = lambda _: None
    ) -> tuple[LightGBMModel, int]:
        """Grow on some rows for as long as the average precision on others rises; returns trees and their number."""
        first = self.dataset(*self.sampled(training))
        if not self._config.early_stopping_rounds:
            booster = lightgbm.train(self._parameters(), first, num_boost_round=self._config.trees)
            return LightGBMModel(booster.model_to_string()), self._config.trees
        booster = lightgbm.train(
            self._parameters(),
            first,
            num_boost_round=self._config.trees,
            valid_sets=[self.dataset(validation, self._data.weight[validation], first)],
            callbacks=[
                lightgbm.early_stopping(self._config.early_stopping_rounds, verbose=False),
                lambda at: report(f"{at.iteration + 1} trees of at most {self._config.trees} are grown and checked"),
            ],
        )
        # What comes after the best iteration is not part of it.
        best = LightGBMModel(booster.model_to_string(num_iteration=booster.best_iteration))
        return best, booster.best_iteration

    def precision_by_trees(self, training: NDArray[np.intp], validation: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the average precision on some rows after each tree that is grown on others; shape (trees,)."""
        first, curves = self.dataset(*self.sampled(training)), dict[str, dict[str, list[float]]]()
        lightgbm.train(
            self._parameters(),
            first,
            num_boost_round=self._config.trees,
            valid_sets=[self.dataset(validation, self._data.weight[validation], first)],
            callbacks=[lightgbm.record_evaluation(curves)],
        )
        return np.array(curves["valid_0"]["average_precision"])

    def grown(self, rows: NDArray[np.intp], rounds: int) -> str:
        """Return so many trees, as LightGBM writes them."""
        trees = lightgbm.train(self._parameters(), self.dataset(*self.sampled(rows)), num_boost_round=rounds)
        return str(trees.model_to_string())

    def _parameters(self) -> dict[str, Any]:
        config = self._config
        return {
            "objective": "binary",
            "metric": "average_precision",
            "num_leaves": config.leaves,
            "learning_rate": config.learning_rate,
            "min_data_in_leaf": config.rows_per_leaf,
            "feature_fraction": config.feature_fraction,
            "bagging_fraction": config.row_fraction,
            "bagging_freq": 1,
            "lambda_l2": config.l2,
            "num_threads": config.threads,
            "seed": config.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def sampled(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the frauds among some rows and a sample of the legitimate ones, with weights that make up for it."""
        fraud, weight = self._data.fraud[rows], self._data.weight[rows]
        frauds = int(np.count_nonzero(fraud))
        wanted = max(self._config.legitimate_rows, LEGITIMATE_PER_FRAUD * frauds)
        if wanted >= len(rows) - frauds:
            return rows, weight
        rate = np.ones(len(rows))
        rate[~fraud] = self._rates(rows, rows[~fraud], wanted)
        kept = self._draws[rows] < rate
        return rows[kept], (weight / rate)[kept]

    def _rates(self, rows: NDArray[np.intp], legitimate: NDArray[np.intp], wanted: int) -> NDArray[np.float64] | float:
        """Return the probability at which each legitimate row among ``rows`` is sampled; shape (len(legitimate),)."""
        config = self._config
        if not config.pilot_trees:
            return wanted / len(legitimate)
        if self.pilot is None:
            of_pilot = msgspec.structs.replace(
                config,
                trees=config.pilot_trees,
                learning_rate=PILOT_LEARNING_RATE,
                legitimate_rows=max(1, config.legitimate_rows // 2),
                pilot_trees=0,
            )
            # By draws of its own: it scores what it was grown on too low, and that must not decide what is sampled.
            own = _Trees(self._data, of_pilot, self._features, sample=f"{TRAINING_SAMPLE}/pilot")
            grown = LightGBMModel(own.grown(rows, config.pilot_trees))
            self.pilot = _Pilot(grown, np.full(len(self._data.fraud), np.nan))
        return sampling_rates(self.pilot.scores(self._data, legitimate), wanted)

    def _recency(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return what age leaves of each row's weight, shape (len(rows),)."""
        time_us, half_life_us = self._data.event_time_us[rows], self._config.half_life_days * US_PER_DAY
        if not half_life_us:
            return np.ones(len(rows))
        return np.asarray(np.maximum(np.exp2((time_us - time_us.max()) / half_life_us), LEAST_RECENCY), np.float64)

    def dataset(
        self, rows: NDArray[np.intp], weight: NDArray[np.float64], reference: lightgbm.Dataset | None = None
    ) -> lightgbm.Dataset:
        """Return rows to grow trees on, the older ones at less weight; with ``reference``, rows to check them on."""
        columns = self._data.wide(rows)
        columns[:, self._others] = 0.0
        if reference is None:
            weight = weight * self._recency(rows)
        return lightgbm.Dataset(
            columns,
            self._data.fraud[rows].astype(np.float64),
            weight=weight,
            feature_name=list(FEATURES),
            reference=reference,
            params={"verbosity": -1},
        )


def _check_learned(
    margin: NDArray[np.float64], fraud: NDArray[np.bool_], weight: NDArray[np.float64], *, force: bool
) -> None:
    advice = "train on more days (--train-from), on other features (--features), or check the labels"
    if float(np.ptp(margin)) == 0.0:
        raise ModelError(f"the trees give every transaction of the validation period one score: {advice}")
    auc = auc_roc(fraud, margin, weight)
    if auc is not None and auc < LEAST_AUC and not force:
        raise ModelError(
            f"on the validation period the scores tell frauds apart hardly better than chance (AUC {auc:.3f}, and at "
            f"least {LEAST_AUC} is needed): {advice}"
        )


def _sensitivity(
    data: TrainingSet, split: Split, config: TrainingConfig, features: Sequence[str]
) -> list[dict[str, Any]]:
    """Return how the training does on wrong labels."""
    rows = np.sort(np.concatenate([split.training, split.validation]), kind="stable")
    sample = data.take(rows)
    training, checked = (np.searchsorted(rows, part) for part in (split.training, split.validation))

    def scored(fraud: NDArray[np.bool_]) -> NDArray[np.float64]:
        trees, _ = _Trees(replace(sample, fraud=fraud), config, features).grown_until_best(training, checked)
        return trees.margin(sample.wide(checked))

    return sensitivity(sample, checked, scored)
