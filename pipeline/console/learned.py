"""Progress of a label: from when it counts, and which versions have learned it."""

from typing import Final

from pipeline.console.followed import FollowedVersions, LearnedExample
from pipeline.console.views import LabelView, LearnedView
from pipeline.learning.labels import FRAUD, LEGITIMATE, source_rank, too_late
from schemas.codec import timestamp_us
from schemas.messages import Decision
from schemas.times import time_of

WITHDRAWN: Final = "withdrawn"


def learned_view(
    followed: FollowedVersions, grace_days: float, view: LabelView, decision: Decision | None
) -> LearnedView:
    """Return what became of a label.

    Args:
        followed: Versions, and what they have learned.
        grace_days: Days that a label may come later than its transaction.
        view: The label.
        decision: Of its transaction; None where it is not known.
    """
    label, known_at = view.label, time_of(view.known_us)
    event_time = None if decision is None else decision.event_time
    if late := too_late(event_time, known_at, grace_days):
        return LearnedView(late, None, late)
    if not source_rank(label.source):
        return LearnedView(None, None, "A rule's label is for people: no model learns it.")
    counts = f"Counts since {known_at:%Y-%m-%d %H:%M} UTC."
    if not view.holds:
        return LearnedView(None, None, f"{counts} Another label of the transaction holds, and is learned.")
    known = label.label in (FRAUD, LEGITIMATE)
    example = followed.example(label.transaction_id, label.card_id)
    if example is not None and example.label != (label.label if known else WITHDRAWN):
        example = None
    river = None if example is None or example.held else followed.river_behind(example.offset)
    texts = [counts, _river_text(followed, view, example, river)]
    data = followed.training_data()
    if known:
        text = "LightGBM learns it with its next version."
        event_us = None if event_time is None else timestamp_us(event_time)
        if data is not None and event_us is not None and data.holds(event_us, view.known_us, label.label):
            text = f"LightGBM version {data.version} was trained with it."
        texts.append(text)
    return LearnedView(None, river, " ".join(texts))


def _river_text(followed: FollowedVersions, view: LabelView, example: LearnedExample | None, river: str | None) -> str:
    if river is not None:
        verb = "has learned it" if view.label.label in (FRAUD, LEGITIMATE) else "has unlearned what was known"
        return f"The online model {verb} (version {river})."
    if example is not None and example.held:
        return "It is held as part of a surge of labels, until somebody runs `fraud-pipeline models release`."
    if followed.history.frozen:
        return "Learning is frozen: the online model learns it afterwards."
    seen = followed.example(view.label.transaction_id, view.label.card_id)
    if seen is None and view.known_us < followed.examples_since_us:
        return "What the online model learned at that time is not looked at any more."
    return "The online model has not learned it yet."
