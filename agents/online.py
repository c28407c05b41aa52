"""The online model that the settings ask for, with its state in the registry where its record only names it."""

from pipeline.models.registry import Registry
from pipeline.scoring import river_factory
from pipeline.scoring.configured_river import ConfiguredRiverModel
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.training_updates import RiverLearner
from pipeline.settings import Settings


class OnlineModels:
    """Loads, starts, resumes and keeps versions of the online model."""

    def __init__(self, settings: Settings) -> None:
        self._classifier = settings.river_classifier
        self._registry = Registry(settings.registry_path)

    def first(self) -> Scorer:
        """Return the model before its first training update."""
        return river_factory.first_river(self._classifier)

    def load(self, payload: bytes) -> Scorer:
        """The scorer of a ``river`` record."""
        return river_factory.load_river(payload, self._classifier, self._registry.read_file)

    def learner(self, published: Scorer | None) -> RiverLearner:
        """Return a learner that goes on from ``published``, or an untrained one."""
        if published is None:
            return river_factory.new_learner(self._classifier)
        return river_factory.resume_learner(published.to_payload(), self._classifier, self._registry.read_file)[0]

    def save(self, model: Scorer) -> None:
        """Put a configured classifier's state where its record will say that it is."""
        if isinstance(model, ConfiguredRiverModel):
            self._registry.save_file(model.file_name, model.state)
