"""The online model that the settings ask for, with its state in the registry where its record only names it."""

from pipeline.registry import Registry
from pipeline.scoring import river_factory
from pipeline.scoring.configured_river import ConfiguredRiverModel
from pipeline.scoring.river_model import RiverLearner, RiverModel
from pipeline.settings import Settings


class OnlineModels:
    """Loads, starts, resumes and keeps versions of the online model."""

    def __init__(self, settings: Settings) -> None:
        self._classifier = settings.river_classifier
        self._registry = Registry(settings.registry_path)

    def first(self, lightgbm_version: str) -> RiverModel:
        """The model before its first lesson."""
        return river_factory.first_river(lightgbm_version, self._classifier)

    def load(self, payload: bytes) -> RiverModel:
        """The scorer of a ``river`` record."""
        return river_factory.load_river(payload, self._classifier, self._registry.read_file)

    def learner(self, lightgbm_version: str, published: RiverModel | None, examples_start: int) -> RiverLearner:
        """A learner that goes on from ``published``, or has had no lesson and begins at ``examples_start``."""
        if published is None:
            return river_factory.new_learner(lightgbm_version, self._classifier, examples_start)
        learner, _ = river_factory.resume_learner(
            published.to_payload(), lightgbm_version, self._classifier, self._registry.read_file
        )
        return learner

    def keep(self, model: RiverModel) -> None:
        """Put a configured classifier's state where its record will say that it is."""
        if isinstance(model, ConfiguredRiverModel):
            self._registry.save_file(model.file_name, model.state)
