"""The change of the active declaration of features: checked against what was published, and what reads it."""

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pipeline.decision.policy import compared_features
from pipeline.decision.rules import RULES, names_read
from pipeline.features.declaration import Declaration
from pipeline.features.feature_set import FeatureSet
from pipeline.models.known import KnownVersions
from pipeline.models.library import PublishedVersions
from pipeline.models.publish import ControlWriter, ModelChange, VersionToPublish
from pipeline.models.published_files import FEATURES, PublishedFiles
from pipeline.models.registry import Registry
from pipeline.models.version_history import CHAIN_DAYS, RETRAIN, ROLLBACK, VersionHistory
from pipeline.scoring.lightgbm_model import needed_features
from pipeline.settings import Settings
from pipeline.settings.features_file import FeaturesError
from schemas.messages import VersionReference


class DeclarationChange(NamedTuple):
    """A change of the active declaration."""

    before: FeatureSet | None
    """None: no declaration was active."""
    after: FeatureSet

    @property
    def added(self) -> list[str]:
        """Names of the features that only the new one has."""
        return _new_names(self.after, self.before)

    @property
    def removed(self) -> list[str]:
        """Names of the features that only the one before has."""
        return [] if self.before is None else _new_names(self.before, self.after)

    @property
    def rebuilds(self) -> bool:
        """True if windows hold something else, so that snapshots of before cannot be used."""
        return self.before is None or self.before.state_version != self.after.state_version


def _new_names(features: FeatureSet, others: FeatureSet | None) -> list[str]:
    """Return the names that others lack; without what only travels to the merchants' windows."""
    known = {*(others.features if others is not None else ()), *(feature.name for feature in features.carried)}
    return [name for name in features.features if name not in known]


def publish_declaration(bootstrap: str, settings: Settings, declaration: Declaration, by: str) -> DeclarationChange:
    """Make a declaration of features active; does nothing where it is.

    Args:
        bootstrap: Address of the cluster.
        settings: Settings of the cluster, and of the registry where versions are looked for too.
        declaration: With its filters as trees.
        by: Who does it.

    Raises:
        FeaturesError: It gives a name another meaning, or lacks a feature that an active or shadow version needs.
        ModelError: The content of such a version cannot be read.
        DeliveryFailed: It could not be written; nothing became active.
    """
    published, writer = PublishedFiles(bootstrap, settings), ControlWriter(bootstrap, settings)
    made = FeatureSet(declaration)

    refuse_dropped(made, settings.dropped_names)

    def decide() -> DeclarationChange:
        active = published.active_declaration()
        if active is not None and active.digest == declaration.digest:
            return DeclarationChange(made, made)
        refuse_other_meaning(made, [found for _, found in published.declarations() if found is not None])
        versions = PublishedVersions.on(bootstrap, settings)
        refuse_missing(made, needed(versions.history, KnownVersions(Registry(settings.registry_path), versions)))
        content = VersionToPublish(FEATURES.name, declaration.version, declaration.content)
        writer.activate(writer.contents([content]), ModelChange(by=by))
        return DeclarationChange(None if active is None else FeatureSet(active), made)

    return writer.undisturbed(decide, published.refresh)


def refuse_other_meaning(made: FeatureSet, published: Sequence[Declaration]) -> None:
    """Raise `FeaturesError` where a name means something else than in a declaration that was published before."""
    for before in published:
        for name, field in made.declaration.fields.items():
            if name in before.fields and before.fields[name].type != field.type:
                raise FeaturesError(
                    f"field {name} was a {before.fields[name].type} in declaration {before.digest}, which was "
                    "published before: a name keeps its meaning; give the changed field another name"
                )
        definitions = FeatureSet(before).definitions
        for name, definition in made.definitions.items():
            if definitions.get(name, definition) != definition:
                raise FeaturesError(
                    f"{name} is something else in declaration {before.digest}, which was published before: a name "
                    "keeps its meaning; give the changed feature another name"
                )


def refuse_dropped(made: FeatureSet, dropped: Collection[str]) -> None:
    """Raise `FeaturesError` where windows of merchants read a field that is dropped: a hash of it would travel."""
    if found := sorted({given.field for given in made.merchant_inputs} & {*dropped}):
        raise FeaturesError(
            f"windows of merchants read {', '.join(found)}, which FRAUD_PIPELINE_DROPPED_FIELDS keeps out of profiled: "
            "declare it for cards, or send tokens of it (docs/protection.md)"
        )


def refuse_missing(made: FeatureSet, needed_by: Iterator[tuple[str, set[str]]]) -> None:
    """Raise `FeaturesError` where a declaration lacks a feature that a version needs.

    Args:
        made: Features of the declaration.
        needed_by: Description of each version, and the features that it needs.
    """
    for version, names in needed_by:
        if missing := sorted(names.difference(made.features, made.numbers, made.texts)):
            raise FeaturesError(
                f"{version} needs {', '.join(missing[:5])}, which this declaration lacks: declare it, or make a "
                "version active first that does without"
            )


def needed(history: VersionHistory, known: KnownVersions) -> Iterator[tuple[str, set[str]]]:
    """Yield a description of each active and shadow version, and the features and fields that it needs."""
    bundles = history.bundles()
    if bundles:
        active = bundles[-1]
        yield (
            f"the active LightGBM version {active.lightgbm.version}",
            needed_features(_payload(known, active.lightgbm)),
        )
        yield f"the active policy {active.policy.version}", compared_features(_payload(known, active.policy))
    references = [reference for activation in history.activations for reference in activation.versions]
    for rules in [reference for reference in references if reference.name == RULES][-1:]:
        yield f"the active set of rules {rules.version}", names_read(_payload(known, rules))
    for shadow in _shadows(history):
        yield f"LightGBM version {shadow.version} in the shadow", needed_features(_payload(known, shadow))


def _payload(known: KnownVersions, reference: VersionReference) -> bytes:
    return known.at(reference).payload


def _shadows(history: VersionHistory) -> list[VersionReference]:
    """Return the versions that the guard of `fraud-pipeline retrain` compares with those that serve."""
    tenures = history.tenures()
    start = max((number for number, tenure in enumerate(tenures) if tenure.step == ROLLBACK), default=0)
    last = len(tenures) - 1
    if last <= start or history.last_writer(RETRAIN) is None:
        return []
    oldest_ms = (datetime.now(UTC) - timedelta(days=CHAIN_DAYS)).timestamp() * 1_000
    first = next((number for number in range(start + 1, last) if tenures[number].activated_ms >= oldest_ms), last)
    return [tenures[number - 1].lightgbm for number in dict.fromkeys((last, first))]
