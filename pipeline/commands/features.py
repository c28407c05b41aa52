"""``fraud-pipeline features``: the features that there are, and a check of a file that declares more."""

from pathlib import Path

import click

from pipeline.observability.terminal import printable
from pipeline.settings.features_file import read_features_file


@click.group()
def command() -> None:
    """List the features, and check a file that declares more."""


@command.command("list")
def list_features() -> None:
    """List the features that are computed: name, unit, meaning, and what they cost here.

    * marks those that a training uses by default. FRAUD_PIPELINE_FEATURES_FILE names what is declared.
    """
    from pipeline.commands.feature_costs import EVENTS, costs
    from pipeline.features.catalogue import ACTIVE

    measured = costs(ACTIVE)
    groups_ns = {name: ns for cost in measured.values() for name, ns in cost.groups_ns.items()}
    for feature in ACTIVE.declared:
        cost = f", {groups_ns[feature.name]:,.0f} ns with its other windows" if feature.name in groups_ns else ""
        mark = " *" if feature.name in ACTIVE.default_features else ""
        click.echo(f"{feature.name}{mark} ({feature.unit}{cost})")
        click.echo(f"    {printable(feature.meaning)}")
    for entity, cost_of in measured.items():
        click.echo(
            f"{entity}: built-in features {cost_of.built_in_ns:,.0f} ns a transaction, declared windows "
            f"{sum(cost_of.groups_ns.values()):,.0f} ns,\n    {cost_of.event_bytes * EVENTS:,} bytes a {entity} of "
            f"{EVENTS} events"
        )


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check(file: Path) -> None:
    """Say which features FILE declares, or what is wrong with it, and on which line."""
    from pipeline.features.feature_set import FeatureSet

    features = FeatureSet(read_features_file(file.read_bytes(), str(file)))
    for feature in features.declared:
        if feature.name in features.attribute_features or feature.name in features.window_features:
            click.echo(f"{feature.name} ({feature.unit})")
            click.echo(f"    {printable(feature.meaning)}")
    own = len(features.attribute_features) + len(features.window_features)
    click.echo(f"{own} of your own, {len(features.declared) - own} built in or carried")
