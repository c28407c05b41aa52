"""The metrics of fraud detection as their definitions read, one transaction after the other; slow, and plain to see."""

from collections.abc import Sequence

DAY_US = 86_400_000_000


def days_of(event_time_us: Sequence[int]) -> list[int]:
    return sorted({time // DAY_US for time in event_time_us})


def card_precision(
    fraud: Sequence[bool],
    score: Sequence[float],
    event_time_us: Sequence[int],
    card: Sequence[int],
    top: int,
    remove: bool,
) -> float:
    """Mean over days of: compromised cards among the ``top`` with the highest score, by ``top``."""
    found_before: set[int] = set()
    shares = []
    for day in days_of(event_time_us):
        best: dict[int, float] = {}
        compromised = set()
        for row, time in enumerate(event_time_us):
            if time // DAY_US == day and card[row] not in found_before:
                best[card[row]] = max(best.get(card[row], score[row]), score[row])
                if fraud[row]:
                    compromised.add(card[row])
        chosen = sorted(best, key=lambda item: (-best[item], item))[:top]
        found = [item for item in chosen if item in compromised]
        shares.append(len(found) / top)
        if remove:
            found_before |= set(found)
    return sum(shares) / len(shares)


def best_of_days(score: Sequence[float], event_time_us: Sequence[int], top: int) -> set[int]:
    """The rows with the ``top`` highest scores of each day, earlier rows first among equals."""
    chosen: set[int] = set()
    for day in days_of(event_time_us):
        rows = [row for row, time in enumerate(event_time_us) if time // DAY_US == day]
        chosen |= set(sorted(rows, key=lambda row: (-score[row], row))[:top])
    return chosen


def precision_at(fraud: Sequence[bool], score: Sequence[float], event_time_us: Sequence[int], top: int) -> float:
    chosen, days = best_of_days(score, event_time_us, top), days_of(event_time_us)
    return sum(sum(fraud[row] for row in chosen if event_time_us[row] // DAY_US == day) / top for day in days) / len(
        days
    )


def known_before_the_day(card: Sequence[int], event_time_us: Sequence[int], known_us: Sequence[int]) -> list[bool]:
    return [
        any(card[other] == card[row] and known_us[other] < time // DAY_US * DAY_US for other in range(len(card)))
        for row, time in enumerate(event_time_us)
    ]


def from_alert_on(
    alert: Sequence[bool], card: Sequence[int], event_time_us: Sequence[int], protection_us: int
) -> list[bool]:
    """Of frauds: those for which an alert about a fraud of the card was raised then or not too long before."""
    rows = range(len(alert))
    return [
        any(
            alert[earlier] and card[earlier] == card[row] and 0 <= time - event_time_us[earlier] <= protection_us
            for earlier in rows
        )
        for row, time in enumerate(event_time_us)
    ]
