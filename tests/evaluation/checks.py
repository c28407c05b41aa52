"""What must hold after a run. Each check is a pure function of what was recorded, and says what it compared."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.features.catalogue import CARD_FEATURES, FEATURES
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.kinds import Scorer
from tests.evaluation.recorded import Decisions, Identity
from tests.helpers.expected import windows_of
from tests.reference.features import card_features, merchant_features, tolerance

EXAMPLES = 5
"""Deviations that are named; all are counted."""
LOGIT_BOUND = 15.0


@dataclass(slots=True)
class Check:
    """The outcome of one check; ``problems`` names some of what is wrong, ``figures`` says what was compared."""

    name: str
    passed: bool
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def every_transaction_once(
    file: Sequence[Identity],
    sent: Sequence[Identity],
    decided: Sequence[Identity],
    dead_letters: Mapping[str, int],
) -> Check:
    """The file's transactions, those on the topic and those that were decided are the same, each exactly once."""
    problems = []
    counts = Counter(decided)
    twice = [identity for identity, count in counts.items() if count > 1]
    if len(set(sent)) != len(sent):
        problems.append(f"{len(sent) - len(set(sent))} transactions were sent more than once")
    for what, item, other in (
        ("of the file are not on the topic", file, sent),
        ("on the topic are not of the file", sent, file),
        ("have no decision", sent, decided),
        ("were decided and never sent", decided, sent),
    ):
        missing = sorted(set(item) - set(other))
        if missing:
            problems.append(f"{len(missing)} transactions {what}, such as {missing[:EXAMPLES]}")
    if twice:
        problems.append(f"{len(twice)} transactions have more than one decision, such as {sorted(twice)[:EXAMPLES]}")
    if dead_letters:
        problems.append(f"dead letters: {dict(dead_letters)}")
    figures = {
        "file": len(file),
        "sent": len(sent),
        "decisions": len(decided),
        "decided_more_than_once": len(twice),
        "dead_letters": sum(dead_letters.values()),
    }
    return Check("every transaction has exactly one decision", not problems, figures, problems)


def features_equal_the_reference(decisions: Decisions, cards: pd.DataFrame, merchants: pd.DataFrame) -> Check:
    """Every feature of every decision of the sampled cards and merchants, computed again the slow way.

    ``cards`` and ``merchants`` are their recorded logs, in log order within each.
    """
    problems: list[str] = []
    compared = different = values_different = 0

    def of_cards(log: pd.DataFrame) -> pd.DataFrame:
        return card_features(log).join(windows_of("card", log))

    def of_merchants(log: pd.DataFrame) -> pd.DataFrame:
        sales = log[log["kind"] == "transaction"]
        # Filters of merchants read features of the card, as they were served.
        rows = decisions.features[[decisions.row[key] for key in sales["transaction"]], : len(CARD_FEATURES)]
        served = pd.DataFrame(rows, sales.index, CARD_FEATURES)
        return merchant_features(log).join(
            windows_of("merchant", sales.join(served[served.columns.difference(log.columns)]))
        )

    for log, reference in ((cards, of_cards), (merchants, of_merchants)):
        if log.empty:
            continue
        decided = log[log["kind"] == "transaction"]
        keys = decided["transaction"].tolist()
        missing = [key for key in keys if key not in decisions.row]
        if missing:
            problems.append(f"{len(missing)} transactions of the sample have no decision, such as {missing[:EXAMPLES]}")
            continue
        rows = np.array([decisions.row[key] for key in keys], np.intp)
        expected = reference(log).loc[decided.index]
        for name in expected.columns:
            got = decisions.features[rows, FEATURES.index(name)]
            wrong = np.flatnonzero(~_agrees(name, got, expected[name].to_numpy(np.float64)))
            compared += len(rows)
            if len(wrong):
                different += 1
                values_different += len(wrong)
                first = int(wrong[0])
                if len(problems) < EXAMPLES:
                    problems.append(
                        f"{name} differs in {len(wrong)} decisions; that of {keys[first]} says {got[first]!r}, "
                        f"the reference {expected[name].iloc[first]!r}"
                    )
    figures = {
        "cards": int(cards["card_id"].nunique()),
        "merchants": int(merchants["merchant_id"].nunique()),
        "values": compared,
        "different_features": different,
        "different_values": values_different,
    }
    if compared == 0:
        problems.append("nothing was compared")
    return Check("features equal the reference", not problems, figures, problems)


def lightgbm_scores_are_reproduced(decisions: Decisions, load: Callable[[str], bytes]) -> Check:
    """Log-odds and probability of each decision, by LightGBM's own predictor from the version that it names.

    ``load`` gives a version's registered payload. Equal to the last bit.
    """
    problems, versions = [], []
    for version, rows in _by(decisions, "lightgbm").items():
        payload = msgspec.json.decode(load(version))
        booster = lightgbm.Booster(model_str=payload["text"])
        margin = np.asarray(booster.predict(decisions.features[rows], raw_score=True, num_threads=1))
        calibration = payload["calibration"]
        logit = np.clip(margin * calibration["slope"] + calibration["intercept"], -LOGIT_BOUND, LOGIT_BOUND)
        problems += _differences(f"LightGBM {version}: log-odds", decisions.logit[rows], logit)
        problems += _differences(f"LightGBM {version}: score", decisions.lightgbm[rows], sigmoid(logit))
        versions.append(version)
    figures = {"decisions": len(decisions.identity), "versions": versions}
    return Check("LightGBM's scores are reproduced", not problems and bool(versions), figures, problems)


def blended_scores_are_reproduced(
    decisions: Decisions, river: Mapping[str, Scorer], blend_of: Callable[[str], float]
) -> Check:
    """The online model's score and the blend of each decision whose River version was found, to the last bit.

    ``river`` holds the versions that could be got by name, ``blend_of`` gives a policy's blend.
    """
    problems, missing, checked = [], 0, 0
    for versions, rows in decisions.rows_by_versions().items():
        model = river.get(versions.river)
        if model is None:
            missing += len(rows)
            continue
        logit = model.logit(decisions.features[rows], decisions.logit[rows])
        beta = blend_of(versions.policy)
        problems += _differences(f"River {versions.river}", decisions.river[rows], sigmoid(logit))
        score = sigmoid((1.0 - beta) * decisions.logit[rows] + beta * logit)
        problems += _differences(f"blend with River {versions.river}", decisions.score[rows], score)
        checked += len(rows)
    figures = {
        "decisions": checked,
        "river_versions": len({versions.river for versions in decisions.versions}),
        "decisions_of_versions_not_found": missing,
    }
    return Check("the blend is reproduced", not problems and checked > 0, figures, problems[:EXAMPLES])


def river_is_a_replay(published: bytes | None, replayed: bytes | None, version: str, examples: int) -> Check:
    """The last published River version, and what replaying the recorded examples up to its offset gives."""
    passed = published is not None and published == replayed
    problems = [] if passed else [f"River {version}: replaying {examples} examples does not give what was published"]
    return Check(
        "the River version is a replay of the examples", passed, {"version": version, "examples": examples}, problems
    )


def labels_were_passed_on(sent: int, profiled: int, early: int) -> Check:
    """A replay labels a transaction once, so every label changes what is known, and stands behind its transaction."""
    problems = [] if sent == profiled else [f"{sent} labels were sent, {profiled} are in profiled"]
    if early:
        problems.append(f"{early} labels stand before their transactions")
    figures = {"sent": sent, "profiled": profiled, "before_their_transaction": early}
    return Check("every label is behind its transaction", not problems, figures, problems)


def _by(decisions: Decisions, name: str) -> dict[str, NDArray[np.intp]]:
    rows: dict[str, list[NDArray[np.intp]]] = {}
    for versions, chosen in decisions.rows_by_versions().items():
        rows.setdefault(getattr(versions, name), []).append(chosen)
    return {version: np.concatenate(parts) for version, parts in rows.items()}


def _agrees(name: str, got: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = np.isnan(got) & np.isnan(expected)
    return same | (np.abs(got - expected) <= tolerance(name) * np.abs(expected))


def _differences(what: str, got: NDArray[np.float64], expected: NDArray[np.float64]) -> list[str]:
    wrong = np.flatnonzero(got != expected)
    if not len(wrong):
        return []
    first = int(wrong[0])
    return [f"{what}: {len(wrong)} of {len(got)} decisions differ; one says {got[first]!r} for {expected[first]!r}"]
