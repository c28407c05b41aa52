"""The online model that the settings ask for: the default layer, or a River classifier by its dotted path."""

from pipeline.scoring.configured_river import (
    CONFIGURED_KIND,
    ClassifierConfig,
    ConfiguredRiverLearner,
    ConfiguredRiverModel,
    ReadFile,
)
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import Scorer, Unpublished
from pipeline.scoring.payload import VERSION_DIGITS, payload_kind
from pipeline.scoring.river_layer import LAYER_KIND, RiverLayer
from pipeline.scoring.training_updates import RiverLearner


class Unlearned(Unpublished):
    """A configured classifier before its first training update: LightGBM's log-odds as they are."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(f"{config.digest[:VERSION_DIGITS]}@0")

    def to_payload(self) -> bytes:
        """Nothing was learned, so there is nothing to publish."""
        raise ModelError("an online model without a training update is not published; every worker has it already")


def first_river(classifier: str | None = None) -> Scorer:
    """Return the online model before its first training update; it changes nothing."""
    return RiverLayer.identity() if classifier is None else Unlearned(ClassifierConfig(classifier=classifier))


def new_learner(classifier: str | None = None) -> RiverLearner:
    """Return an untrained learner; ``classifier`` is the setting ``river_classifier``."""
    if classifier is None:
        # River is imported where something learns: with SciPy's statistics it takes a second and 60 MiB.
        from pipeline.scoring.river_learner import LayerLearner

        return LayerLearner()
    return ConfiguredRiverLearner(classifier)


def resume_learner(payload: bytes, classifier: str | None, read_file: ReadFile) -> tuple[RiverLearner, int]:
    """A learner that goes on from a published version, and the offset in ``examples`` of that version.

    Args:
        payload: The payload of the version.
        classifier: The setting ``river_classifier``; None for the default layer.
        read_file: Reads a file of the local registry by its name and digest; not called for the default layer.

    Raises:
        ModelError: The version is damaged or was made with another configuration.
    """
    if classifier is None:
        from pipeline.scoring.river_learner import LayerLearner

        layer = LayerLearner()
        return layer, layer.restore(payload)
    learner = ConfiguredRiverLearner(classifier)
    return learner, learner.restore(payload, read_file)


def load_river(payload: bytes, classifier: str | None, read_file: ReadFile) -> Scorer:
    """The scorer of a ``river`` record.

    Args:
        payload: The payload of the record.
        classifier: The setting ``river_classifier``; None for the default layer.
        read_file: Reads a file of the local registry by its name and digest; not called for the default layer.

    Raises:
        ModelError: The version does not fit the settings or is damaged.
    """
    kind = payload_kind(payload)
    if kind == LAYER_KIND and classifier is None:
        return RiverLayer.from_payload(payload)
    if kind == CONFIGURED_KIND and classifier is not None:
        return ConfiguredRiverModel.from_payload(payload, classifier, read_file)
    raise ModelError(
        f"the published online model is a {kind!r}, and FRAUD_PIPELINE_RIVER_CLASSIFIER is "
        f"{classifier or 'not set'}: give all workers the same setting, and let the learn agent publish"
    )
