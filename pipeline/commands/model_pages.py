"""The subcommands of ``fraud-pipeline models`` for reviewers: the model card, and a training done again."""

import contextlib
import io
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from pipeline.commands.models import published_versions, versions
from pipeline.commands.shared_options import bootstrap_option, registry_option
from pipeline.models.description import Facts, facts_of, gains, lightgbm_facts
from pipeline.models.known import KnownVersion, KnownVersions
from pipeline.models.model_card import CardSources, card_page, model_card
from pipeline.models.recipes import ABSENT_HYPERPARAMETERS
from pipeline.models.registry import LIGHTGBM, Registry
from pipeline.models.version_history import VersionHistory
from pipeline.observability.terminal import printable_lines
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings


@click.command()
@click.argument("version")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a file, .md or .html.  [default: the standard output]",
)
@click.option(
    "--review-after-days",
    type=click.IntRange(min=1),
    default=365,
    show_default=True,
    help="From the first activation to the review.",
)
@bootstrap_option
@registry_option
def card(version: str, output: Path | None, review_after_days: int, bootstrap: str | None, of_registry: bool) -> None:
    """Write the model card of LightGBM VERSION, from what is recorded of it and nothing else."""
    if output is not None and output.suffix not in (".md", ".html"):
        raise click.UsageError(f"{output} is neither a .md nor a .html file: name one with --output")
    settings, history = Settings(), VersionHistory()
    if of_registry:
        known = KnownVersions(Registry(settings.registry_path))
    else:
        published, registry = published_versions(bootstrap)
        history, known = published.history, KnownVersions(registry, published)
    found = known.find(version, LIGHTGBM)
    text = model_card(
        CardSources(
            facts=facts_of(found),
            gains=gains(found),
            policy=_policy(known, found),
            history=history,
            barred=settings.barred_features,
            review_after=timedelta(days=review_after_days),
        )
    )
    if output is None:
        click.echo(printable_lines(text), nl=False)
        return
    try:
        output.write_text(text if output.suffix == ".md" else card_page(text, found.version), encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error
    click.echo(f"Wrote {output}.")


def _policy(known: KnownVersions, found: KnownVersion) -> Facts | None:
    try:
        return facts_of(known.policy_for(found.version))
    except ModelError:
        # The card says that none is recorded.
        return None


@click.command()
@click.argument("version")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@bootstrap_option
@registry_option
def rebuild(version: str, file: Path, bootstrap: str | None, of_registry: bool) -> None:
    """Train LightGBM VERSION again on FILE, as its metadata say, and compare the digests.

    Nothing is registered and nothing becomes active. Exit code 1 means that the result is another one.
    """
    # Training is imported where it is needed: it takes seconds.
    from pipeline.training.registered import what_differs

    found = versions(bootstrap, of_registry).find(version, LIGHTGBM)
    facts = lightgbm_facts(found)
    arguments = _arguments(facts)
    with tempfile.TemporaryDirectory(prefix="rebuild-") as scratch:
        registry = Registry(Path(scratch))
        train_again(arguments, file, registry.path)
        (entry,) = registry.entries(LIGHTGBM)
        again = KnownVersion(LIGHTGBM, entry.version, registry.load(LIGHTGBM, entry.version), None, entry)
        if again.digest != found.digest:
            why = what_differs(facts, lightgbm_facts(again), found.entry, entry)
            raise ModelError(f"training again gave version {again.version}, not {found.version}: {why}")
    click.echo(f"Training again gave version {found.version} too: digest {found.digest}.")


def _arguments(facts: Facts) -> dict[str, Any]:
    request = facts.get("request")
    if not isinstance(request, dict) or not {"arguments", "settings"} <= request.keys() or "input" not in facts:
        raise ModelError(
            f"LightGBM version {facts['version']} does not say how it was trained, so that it cannot be trained again"
        )
    arguments: dict[str, Any] = request["arguments"]
    if arguments.get("from_topics"):
        raise ModelError(
            f"LightGBM version {facts['version']} was trained on topics; only a file can be trained on again"
        )
    return ABSENT_HYPERPARAMETERS | arguments


def train_again(arguments: dict[str, Any], file: Path, registry_dir: Path) -> None:
    """Call ``fraud-pipeline train`` with recorded arguments; raises what it raises."""
    from pipeline.commands.train import command as train

    context = click.Context(train)
    if "mapping" in arguments:
        mapping = registry_dir / "mapping.toml"
        mapping.write_text(arguments["mapping"], encoding="utf-8")
        arguments = {**arguments, "mapping": mapping}
    values = {
        param.name: param.type_cast_value(context, arguments[param.name])
        for param in train.params
        if param.name in arguments
    }
    positions = {"file": file, "registry_dir": registry_dir, "activate": False, "publish": False, "bootstrap": None}
    with contextlib.redirect_stdout(io.StringIO()), context:
        context.params = dict(values)
        context.invoke(train, **values, **positions)
