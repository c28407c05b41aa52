"""Any River classifier in the place of the default layer, named by a dotted path.

It learns all features from the same examples. Its state is not numbers but a Python object, so it never travels in
a topic: the message names a file of the local registry and its digest, and the digest is verified before the file is
unpickled.
"""

import copy
import hashlib
import importlib
import inspect
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LOGIT_BOUND
from pipeline.scoring.payload import VERSION_DIGITS, Offset, decode_payload, encode_payload
from pipeline.scoring.river_inputs import CLASSIFIER_INPUTS, classifier_rows
from pipeline.scoring.river_layer import LAYER_REVISION
from pipeline.scoring.training_updates import choose, example_sources
from schemas.messages import Example

ReadFile = Callable[[str, str], bytes]
"""(file name, SHA-256) to the bytes of a registry file with that digest."""
CONFIGURED_KIND: Final = "river-file"
MAX_REPETITIONS: Final = 100
"""A classifier that takes no weights sees an example as often as it weighs, but not more often than this."""


class ClassifierConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides the result of training on examples."""

    classifier: str
    inputs: tuple[str, ...] = CLASSIFIER_INPUTS
    revision: int = LAYER_REVISION
    kernel: str = KERNEL_VERSION

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        return hashlib.sha256(encode_payload(self)).hexdigest()


class _ReferencePayload(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    config: ClassifierConfig
    examples_offset: Offset
    file: str
    state_digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


_PAYLOAD: Final = msgspec.json.Decoder(_ReferencePayload)


def build_classifier(path: str) -> Any:
    """Call what ``path`` names (a class, or a function that returns a pipeline), without arguments.

    Raises `ModelError` when that gives no River binary classifier.
    """
    module_name, _, name = path.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"FRAUD_PIPELINE_RIVER_CLASSIFIER is {path!r}, which cannot be imported ({error}); "
            "give a dotted path such as river.naive_bayes.GaussianNB"
        ) from error
    try:
        classifier = factory()
    except TypeError as error:
        raise ModelError(
            f"{path} cannot be made without arguments ({error}); name a function of your own that returns it"
        ) from error
    if not all(callable(getattr(classifier, method, None)) for method in ("learn_one", "predict_proba_one")):
        raise ModelError(f"{path} gives no River classifier: it needs learn_one and predict_proba_one")
    return classifier


class ConfiguredRiverModel:
    """An immutable scorer: holds its own copy of the classifier and asks it row by row."""

    def __init__(self, config: ClassifierConfig, state: bytes, examples_offset: int) -> None:
        """Unpickle the classifier.

        Args:
            config: What the classifier was trained with; its digest begins the version.
            state: The pickled classifier. Only bytes that this installation wrote may come here.
            examples_offset: Offset in ``examples`` behind the last example that it was given.
        """
        self.config = config
        self.examples_offset = examples_offset
        self.state = state
        self.state_digest: str = hashlib.sha256(state).hexdigest()
        self.version: str = f"{config.digest[:VERSION_DIGITS]}@{examples_offset}"
        self._classifier: Any = pickle.loads(state)  # noqa: S301 (verified by `from_payload`)

    @property
    def file_name(self) -> str:
        """Name of the registry file that holds ``state``."""
        return f"river-{self.state_digest}.bin"

    def logit(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds, shape (n,), within `LOGIT_BOUND`, of features (n, len(FEATURES)) and LightGBM's log-odds (n,)."""
        # River does not promise that a prediction leaves a model as it was (caches, drift detectors): ask a copy.
        classifier = copy.deepcopy(self._classifier)
        probabilities = [
            float(classifier.predict_proba_one(row).get(True, 0.0))
            for row in classifier_rows(features, np.clip(base_logit, -LOGIT_BOUND, LOGIT_BOUND))
        ]
        return np.array([_bounded_logit(probability) for probability in probabilities], np.float64)

    def evidence(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> list[str]:
        """Nothing: a classifier in general does not say what it saw."""
        del features
        return [""] * len(base_logit)

    def to_payload(self) -> bytes:
        """Encode the message: configuration, offset, and the name and digest of the registry file."""
        return encode_payload(
            _ReferencePayload(
                kind=CONFIGURED_KIND,
                config=self.config,
                examples_offset=self.examples_offset,
                file=self.file_name,
                state_digest=self.state_digest,
            )
        )

    @classmethod
    def from_payload(cls, payload: bytes, classifier: str, read_file: ReadFile) -> "ConfiguredRiverModel":
        """Read a model.

        Args:
            payload: A version's message, as `to_payload` encodes it.
            classifier: Dotted path of the classifier that this installation is set to.
            read_file: Reads a file of the local registry by its name and digest.

        Raises:
            ModelError: Before anything is unpickled, where the payload is no reference, names a file elsewhere or is of
                another classifier, or where the file is not the one that it names.
        """
        content = decode_payload(payload, _PAYLOAD, "a reference to a River classifier")
        if content.kind != CONFIGURED_KIND:
            raise ModelError(f"the payload is a {content.kind!r}, not a River classifier; look at what was published")
        if content.file != f"river-{content.state_digest}.bin":
            raise ModelError(f"the payload names the file {content.file!r}, which is no River file of a registry")
        if content.config.classifier != classifier:
            raise ModelError(
                f"the River version is of classifier {content.config.classifier!r}, this worker is set to "
                f"{classifier!r}; set FRAUD_PIPELINE_RIVER_CLASSIFIER alike on all workers"
            )
        state = read_file(content.file, content.state_digest)
        if hashlib.sha256(state).hexdigest() != content.state_digest:
            raise ModelError(
                f"registry file {content.file} is not the one that was published: copy the registry again, or let the "
                "learn agent publish a new version"
            )
        return cls(content.config, state, content.examples_offset)


class ConfiguredRiverLearner:
    """Trains a classifier of the user's choice on examples, with the rules of `pipeline.scoring.training_updates`."""

    sources: Final = FEATURES

    def __init__(self, classifier: str) -> None:
        self.config = ClassifierConfig(classifier=classifier)
        self._set(build_classifier(classifier))

    def _set(self, classifier: Any) -> None:
        self._classifier = classifier
        self._weighted = "w" in inspect.signature(classifier.learn_one).parameters

    def learn_examples(self, examples: Iterable[Example]) -> Mapping[str, int]:
        """Learn examples in order; returns what became of them."""
        chosen, counts = choose(examples)
        if chosen:
            logits = np.clip([update.example.logit for update in chosen], -LOGIT_BOUND, LOGIT_BOUND)
            rows = classifier_rows(example_sources([update.example.features for update in chosen], FEATURES), logits)
            for update, row in zip(chosen, rows, strict=True):
                if update.target is not None:
                    # A classifier in general has no way to undo: the new label takes the weight of the former one too.
                    self._learn(row, update.target, update.weight + update.former_weight)
        return counts

    def _learn(self, row: dict[str, float], target: bool, weight: float) -> None:
        if self._weighted:
            self._classifier.learn_one(row, target, w=weight)
        else:
            for _ in range(max(1, min(round(weight), MAX_REPETITIONS))):
                self._classifier.learn_one(row, target)

    def snapshot(self, examples_offset: int) -> ConfiguredRiverModel:
        """The classifier as it is now; the caller stores its ``state`` under its ``file_name``."""
        return ConfiguredRiverModel(self.config, pickle.dumps(self._classifier, protocol=5), examples_offset)

    def restore(self, payload: bytes, read_file: ReadFile) -> int:
        """Continue from a published version; returns the offset that it was taken at."""
        model = ConfiguredRiverModel.from_payload(payload, self.config.classifier, read_file)
        if model.config != self.config:
            raise ModelError(f"River version {model.version} was made with other inputs: start a new one")
        self._set(pickle.loads(model.state))  # noqa: S301 (verified by `from_payload` above)
        return model.examples_offset

    def save(self) -> bytes:
        """The pickled classifier, for `go_back` in this process and for nobody else."""
        return pickle.dumps(self._classifier, protocol=5)

    def go_back(self, saved: bytes) -> None:
        """Be as it was at `save`."""
        self._set(pickle.loads(saved))  # noqa: S301 (never leaves the process)


def _bounded_logit(probability: float) -> float:
    if not 0.0 < probability < 1.0:
        return LOGIT_BOUND if probability >= 1.0 else -LOGIT_BOUND
    return max(-LOGIT_BOUND, min(LOGIT_BOUND, math.log(probability) - math.log1p(-probability)))
