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
    """List all features: name, unit, meaning; * for those that a training uses by default."""
    from pipeline.features.catalogue import DECLARED

    for feature in DECLARED:
        click.echo(f"{feature.name}{' *' if feature.by_default else ''} ({feature.unit})")
        click.echo(f"    {printable(feature.meaning)}")


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check(file: Path) -> None:
    """Say which features FILE declares, as a program with FRAUD_PIPELINE_FEATURES_FILE would read it."""
    for attribute in read_features_file(file.read_bytes(), str(file)):
        click.echo(f"attribute_{attribute.name} (number)")
        click.echo(f"    {printable(attribute.meaning)}")
