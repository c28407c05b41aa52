"""The documented arithmetic of the pipeline, written again from the documents; nothing of it is shared with it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import xxhash

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
US = timedelta(microseconds=1)
DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
LOGIT_BOUND = 15.0
MASK = (1 << 64) - 1

LOGARITHMS = (
    "amount", "card_count_1d", "card_min_1d", "card_count_30d", "card_seconds_since_last", "card_outlier_count_7d",
    "card_outlier_count_30d", "card_merchant_count", "card_regular_mean_30d", "card_amount_to_regular",
    "card_seconds_since_outlier", "merchant_count_1d", "merchant_count_30d", "merchant_amount_to_mean",
    "merchant_unexplained_fraud_30d", "merchant_unreported_since_fraud", "merchant_fraud_run_seconds",
    "merchant_seconds_since_first",
)  # fmt: skip
MISSING = ("card_regular_mean_30d", "card_seconds_since_outlier", "merchant_unreported_since_fraud")
ZERO = ("card_merchant_count", "merchant_unreported_since_fraud")
AMOUNT_EDGES = (10.0, 30.0, 100.0, 300.0, 1000.0)
HOUR_EDGES = (4.0, 8.0, 12.0, 16.0, 20.0)
WINDOWS = ("card_usual_hour_30d", "merchant_new_cards_3d", "merchant_bursts_3d")
"""Windows that the packaged set declares."""
LAYER_INPUTS = len(LOGARITHMS) + len(MISSING) + len(ZERO) + len(AMOUNT_EDGES) + len(HOUR_EDGES) + 2 + 2 * len(WINDOWS)
LEARNING_RATE = 0.001
INPUT_BOUND = 3.0
SCALE_WEIGHT = 100.0
MOST_UNDONE = 5.0
HALVINGS = 80

SOURCE_RANK = {"audit": 7, "analyst": 6, "chargeback": 5, "issuer": 4, "customer": 3, "simulator": 2, "rule": 0}
SEVERITY = {"none": 0, "legitimate": 1, "fraud": 2}


def murmur2(data: bytes) -> int:
    """The 32-bit hash of Kafka's own partitioner (Appleby's MurmurHash2 with Kafka's seed), unsigned."""
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    value = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        block = int.from_bytes(data[i : i + 4], "little")
        block = (block * multiplier) & mask
        block ^= block >> 24
        block = (block * multiplier) & mask
        value = ((value * multiplier) & mask) ^ block
    if rest := data[whole:]:
        value ^= int.from_bytes(rest, "little")
        value = (value * multiplier) & mask
    value ^= value >> 13
    value = (value * multiplier) & mask
    return value ^ (value >> 15)


def partition_of(key: str | bytes, partitions: int) -> int:
    """Where Kafka's own partitioner puts a key."""
    data = key.encode() if isinstance(key, str) else key
    return (murmur2(data) & 0x7FFFFFFF) % partitions


def microseconds(text: str) -> int:
    """Of an RFC 3339 time, since 1970."""
    return (datetime.fromisoformat(text) - EPOCH) // US


def identity(card: str, transaction: str) -> int:
    """The 64 bits that stand for a transaction."""
    return xxhash.xxh3_64_intdigest(f"{card}\x00{transaction}".encode())


def sample_position(number: int, sample: str) -> float:
    """Place of an identity in a named sample, from 0 to below 1: SplitMix64's finalizer."""
    mixed = number ^ xxhash.xxh3_64_intdigest(sample.encode())
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    mixed ^= mixed >> 31
    return float(mixed >> 11) * 2.0**-53


def sigmoid(logit: float) -> float:
    """Probability of log-odds."""
    return 1.0 / (1.0 + math.exp(-max(-40.0, min(40.0, logit))))


def holds(labels: Iterable[tuple[str, str, int]]) -> str:
    """What several labels (label, source, labelled_at in microseconds) leave known, in whatever order they came."""
    best, known = (-1, 0, 0), "none"
    for label, source, labelled_at_us in labels:
        rank = SOURCE_RANK.get(source, 1)
        says = label if label in ("fraud", "legitimate") else "none"
        if rank and (rank, labelled_at_us, SEVERITY[says]) > best:
            best, known = (rank, labelled_at_us, SEVERITY[says]), says
    return known


class Layer:
    """The online layer: weights on standardized inputs, trained on one example after the other."""

    def __init__(self) -> None:
        """Before its first training update: LightGBM's log-odds themselves."""
        self.weights = [0.0] * LAYER_INPUTS
        self.intercept = 0.0
        self.weight = 0.0
        self.means, self.squares = [0.0] * LAYER_INPUTS, [0.0] * LAYER_INPUTS
        fates = ("learned", "corrections", "allowed_for", "held", "other_kernel", "rule", "unlabelled")
        self.updates = dict.fromkeys(fates, 0)

    def logit(self, features: Mapping[str, float | None], base_logit: float) -> float:
        """Log-odds of one transaction."""
        return self._sum(self._standardized(layer_inputs(features)), base_logit)

    def _sum(self, inputs: Sequence[float], base_logit: float) -> float:
        terms = (weight * value for weight, value in zip(self.weights, inputs, strict=True))
        return max(-LOGIT_BOUND, min(LOGIT_BOUND, base_logit)) + sum(terms) + self.intercept

    def _standardized(self, inputs: Sequence[float]) -> list[float]:
        found = []
        for value, mean, square in zip(inputs, self.means, self.squares, strict=True):
            deviation = math.sqrt(square / max(self.weight, 1.0))
            scaled = (value - mean) / deviation if deviation > 1e-9 else 0.0
            found.append(max(-INPUT_BOUND, min(INPUT_BOUND, scaled)))
        return found

    def learn(self, example: Mapping[str, Any], kernel: str) -> None:
        """Learn a record of ``examples``; ``kernel`` is the kernel version of the layer."""
        fate = self._fate(example, kernel)
        self.updates[fate] += 1
        if fate not in ("learned", "corrections"):
            return
        inputs, weight = layer_inputs(example["features"]), example["online_weight"]
        if self.weight >= SCALE_WEIGHT:
            if fate == "corrections":
                undone = example["former"] == "fraud", -example["former_weight"]
                self._update(self._standardized(inputs), example["logit"], *undone)
            if weight:
                self._update(self._standardized(inputs), example["logit"], example["label"] == "fraud", weight)
        if fate == "corrections":
            return
        self.weight += weight
        for i, value in enumerate(inputs):
            distance = value - self.means[i]
            self.means[i] += distance * weight / self.weight
            self.squares[i] += weight * distance * (value - self.means[i])

    def _update(self, inputs: Sequence[float], base_logit: float, fraud: bool, weight: float) -> None:
        z = self._sum(inputs, base_logit) * (1.0 if fraud else -1.0)
        norm = 1.0 + sum(x * x for x in inputs)
        step = importance_step(z, LEARNING_RATE * weight * norm)
        # Never further than the weighted gradient itself would go.
        gradient = 1.0 / (1.0 + math.exp(min(700.0, z)))
        along = min(step / norm, LEARNING_RATE * weight * gradient) if weight > 0 else step / norm
        along *= 1.0 if fraud else -1.0
        self.weights = [own + along * x for own, x in zip(self.weights, inputs, strict=True)]
        self.intercept += along

    @staticmethod
    def _fate(example: Mapping[str, Any], kernel: str) -> str:
        if example["label_source"] == "rule":
            return "rule"
        if example["label"] not in ("fraud", "legitimate", "presumed_legitimate", "withdrawn"):
            return "unlabelled"
        if example["versions"]["kernel"] != kernel:
            return "other_kernel"
        if example["held"]:
            return "held"
        if example["former"] is not None:
            return "corrections"
        return "learned" if example["online_weight"] else "allowed_for"


def layer_inputs(features: Mapping[str, float | None]) -> list[float]:
    """The inputs of the layer, in order."""
    found = [math.log1p(max(0.0, features[name] or 0.0)) for name in LOGARITHMS]
    found += [1.0 if features[name] is None else 0.0 for name in MISSING]
    found += [1.0 if features[name] == 0 else 0.0 for name in ZERO]
    for name, edges in (("amount", AMOUNT_EDGES), ("hour", HOUR_EDGES)):
        inside = band(features[name] or 0.0, edges)
        found += [1.0 if number == inside else 0.0 for number in range(len(edges) + 1)]
    found += [math.copysign(math.log1p(abs(features[name] or 0.0)), features[name] or 0.0) for name in WINDOWS]
    found += [1.0 if features[name] is None else 0.0 for name in WINDOWS]
    return found


def band(value: float, edges: Sequence[float]) -> int:
    """How many edges are at or below ``value``."""
    return sum(value >= edge for edge in edges)


def importance_step(z: float, reach: float) -> float:
    """Return the move of the log-odds towards the target: the d with d + exp(z) (exp(d) - 1) = reach, by halving."""
    reach = max(reach, -MOST_UNDONE)
    low, high = reach, 0.0
    if reach >= 0.0:
        low, high = 0.0, min(reach, math.log1p(reach * math.exp(min(700.0, -z))))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle + math.exp(z) * math.expm1(middle) < reach:
            low = middle
        else:
            high = middle
    return (low + high) / 2
