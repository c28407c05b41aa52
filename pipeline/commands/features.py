"""``fraud-pipeline features``: the features that there are, and files that declare more: checked and published."""

from pathlib import Path

import click

from pipeline.observability.terminal import printable
from pipeline.settings import Settings
from pipeline.settings.features_file import read_features_file


@click.group()
def command() -> None:
    """List the features, and check or publish a file that declares more."""


@command.command("list")
def list_features() -> None:
    """List the features that are computed: name, unit, meaning, and what they cost here.

    * marks those that a training uses by default. FRAUD_PIPELINE_FEATURES_FILE names what is declared.
    """
    from pipeline.commands.feature_costs import EVENTS, costs, function_ns
    from pipeline.features.catalogue import ACTIVE

    measured = costs(ACTIVE)
    groups_ns = {name: ns for cost in measured.values() for name, ns in cost.groups_ns.items()}
    shown = {name: f", {ns:,.0f} ns with its other windows" for name, ns in groups_ns.items()}
    shown |= {name: f", {ns:,.0f} ns" for name, ns in function_ns(ACTIVE).items()}
    for feature in ACTIVE.declared:
        cost = shown.get(feature.name, "")
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
    from pipeline.features.feature_set import TRAINED, FeatureSet

    features = FeatureSet(read_features_file(file.read_bytes(), str(file)))
    own = {*features.attribute_features, *features.window_features} - TRAINED
    for feature in features.declared:
        if feature.name in own:
            click.echo(f"{feature.name} ({feature.unit})")
            click.echo(f"    {printable(feature.meaning)}")
    click.echo(f"{len(own)} of your own, {len(features.declared) - len(own)} packaged, built in or carried")


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def publish(file: Path) -> None:
    """Make the declaration in FILE active on the cluster; workers finish their batches and start again with it.

    It is refused where a name means something else than before, and while an active version needs what it lacks.
    """
    from pipeline.broker.running import find_cluster
    from pipeline.commands.shared_options import user_name
    from pipeline.models.declaration_changes import publish_declaration

    settings, declaration = Settings(), read_features_file(file.read_bytes(), str(file))
    change = publish_declaration(find_cluster(settings), settings, declaration, user_name() or "")
    if change.before is change.after:
        click.echo(f"Declaration {declaration.digest} is active already.")
        return
    click.echo(f"Declaration {declaration.digest} is active, with {change.after.count} features.")
    if change.before is not None:
        click.echo(f"Added: {', '.join(change.added) or 'none'}.")
        click.echo(f"Removed: {', '.join(change.removed) or 'none'}.")
    if change.rebuilds:
        click.echo("Workers rebuild their windows from the topics.")
    else:
        click.echo("Workers go on with the windows that they have.")


@command.command()
def show() -> None:
    """Print the active declaration as JSON: a file for FRAUD_PIPELINE_FEATURES_FILE of commands that read topics."""
    from pipeline.broker.running import find_cluster
    from pipeline.models.published_files import PublishedFiles

    settings = Settings()
    if (active := PublishedFiles.on(find_cluster(settings), settings).active_declaration()) is None:
        raise click.ClickException("no declaration is active: a worker's first start publishes one")
    click.echo(active.content)


@command.command()
def history() -> None:
    """List the activations of declarations: time, digest, number of features; * for the active one."""
    from pipeline.broker.running import find_cluster
    from pipeline.features.feature_set import FeatureSet
    from pipeline.models.published_files import PublishedFiles
    from schemas.times import utc_text

    settings = Settings()
    activations = PublishedFiles.on(find_cluster(settings), settings).declarations()
    active = max((at for at, (_, declaration) in enumerate(activations) if declaration is not None), default=None)
    for number, (activation, declaration) in enumerate(activations):
        count = "content lost" if declaration is None else f"{FeatureSet(declaration).count:,} features"
        mark = " *" if number == active else ""
        click.echo(f"{utc_text(activation.at)}  {printable(activation.digest)}  {count}{mark}")
