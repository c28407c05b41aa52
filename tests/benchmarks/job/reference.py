"""The right answers of job (a), computed slowly and obviously from its description; shares no code with any engine."""

import json
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd

DAY = 24 * 3600 * 1000


def profiles(frame: pd.DataFrame) -> pd.DataFrame:
    """Count and mean of each transaction's windows, in major units; the rows of ``frame`` are in order of the log."""
    earlier: dict[str, list[tuple[int, int]]] = {}
    rows = []
    for card, t, cents in zip(frame["card_id"], frame["time_ms"].tolist(), frame["cents"].tolist(), strict=True):
        history = earlier.setdefault(card, [])
        windows = [[amount for u, amount in history if t - days * DAY < u <= t] for days in (1, 7, 30)]
        rows.append(
            [len(window) for window in windows]
            + [sum(window) / (100 * len(window)) if window else 0.0 for window in windows]
        )
        history.append((t, cents))
    names = [f"{what}_{days}d" for what in ("count", "mean") for days in (1, 7, 30)]
    return pd.DataFrame(rows, columns=names, index=frame.index)


def inputs(frame: pd.DataFrame, profile: pd.DataFrame) -> pd.DataFrame:
    """The models' inputs, one named column each."""
    x = pd.DataFrame(index=frame.index)
    amount = frame["cents"] / 100
    when = pd.to_datetime(frame["time_ms"], unit="ms")
    hour = (frame["time_ms"] % DAY) / (3600 * 1000)
    x["amount"] = amount
    x["sqrt_amount"] = np.sqrt(amount)
    x["fourth_root_amount"] = np.sqrt(np.sqrt(amount))
    x["odd_cents"] = frame["cents"] % 100
    x["hour"] = hour
    x["hours_from_noon"] = (hour - 12).abs()
    x["hours_from_noon_squared"] = (hour - 12) ** 2
    x["weekday"] = when.dt.day_of_week
    x["night"] = when.dt.hour < 6
    x["weekend"] = when.dt.day_of_week >= 5
    for name in profile:
        x[name] = profile[name]
    for days in (1, 7, 30):
        mean = profile[f"mean_{days}d"]
        x[f"amount_to_mean_{days}d"] = (amount / mean.where(mean > 0)).fillna(0)
    for days in (1, 7, 30):
        x[f"amount_less_mean_{days}d"] = amount - profile[f"mean_{days}d"]
    for short, long in ((1, 7), (7, 30)):
        count = profile[f"count_{long}d"]
        x[f"count_{short}d_to_{long}d"] = (profile[f"count_{short}d"] / count.where(count > 0)).fillna(0)
    x["mcc"] = frame["mcc"]
    x["online"] = frame["channel"] == "online"
    x["abroad"] = frame["country"] != "FR"
    x["amount_online"] = amount * x["online"]
    x["amount_night"] = amount * x["night"]
    x["sqrt_mean_30d"] = np.sqrt(profile["mean_30d"])
    return x.astype(float)


def decisions(frame: pd.DataFrame, workdir: Path) -> pd.DataFrame:
    """What an engine must answer: ``card_id``, ``score``, ``lightgbm``, ``river`` and the profile, by transaction."""
    profile = profiles(frame)
    x = inputs(frame, profile)
    names = json.loads((workdir / "job.json").read_text(encoding="utf-8"))["inputs"]
    numbers = json.loads((workdir / "river.json").read_text(encoding="utf-8"))
    logit = numbers["intercept"] + sum(weight * x[name] for name, weight in numbers["weights"].items())
    booster = lightgbm.Booster(model_file=str(workdir / "model.txt"))
    answer = pd.DataFrame({"card_id": frame["card_id"], "lightgbm": booster.predict(x[names].to_numpy())})
    answer["river"] = 1 / (1 + np.exp(-logit))
    answer["score"] = (answer["lightgbm"] + answer["river"]) / 2
    return pd.concat([answer, profile], axis=1).set_index(frame["transaction_id"])
