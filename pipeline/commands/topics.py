"""``fraud-pipeline topics``: create the pipeline's topics, or check them."""

import click

from pipeline.broker import provide_broker
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.settings import Settings


@click.command()
@click.option("--check", is_flag=True, help="Create nothing: missing topics are an error.")
def command(*, check: bool) -> None:
    """Create the pipeline's topics, and check those that exist.

    A wrong number of partitions is an error; any other difference is reported. Without KAFKA_BOOTSTRAP_SERVERS the
    topics are the embedded broker's, which is started for the moment where it does not run.
    """
    settings = Settings().model_copy(update={"create_topics": not check})
    with provide_broker(settings) as broker:
        states = ensure_topics(broker.bootstrap_servers, settings)
    width = max(len(state.name) for state in states)
    for state in states:
        plural = "s" if state.partitions != 1 else ""
        click.echo(f"{state.name:{width}}  {state.action:8} {state.partitions} partition{plural}")
        for warning in state.warnings:
            click.echo(f"{'':{width}}  warning: {warning}")
