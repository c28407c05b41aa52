"""``fraud-pipeline broker``: the embedded Kafka broker, alone, in the foreground."""

import signal
import time
from typing import Final

import click

from pipeline.broker import embedded_broker
from pipeline.settings import Settings

CHECK_INTERVAL_S: Final = 0.5


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: the last one, or a free one]"
)
def command(*, port: int | None) -> None:
    """Run the embedded Kafka broker in the foreground; Ctrl-C stops it.

    Its address is printed when it serves. Its data stay in the data directory (FRAUD_PIPELINE_DATA_DIR), where other
    fraud-pipeline commands find it by themselves.
    """
    settings = Settings()
    if settings.kafka_bootstrap_servers is not None:
        raise click.ClickException(
            f"KAFKA_BOOTSTRAP_SERVERS names a cluster ({settings.kafka_bootstrap_servers}), so there is none to start. "
            "Unset it to run the embedded broker."
        )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    data_dir = settings.data_dir / "kafka"
    click.echo(f"Starting Kafka in {data_dir} (a first start fetches 45 MB) ...", err=True)
    try:
        with embedded_broker(data_dir, port=port, long_lived=True) as broker:
            click.echo(broker.bootstrap_servers)
            click.echo(f"Kafka serves at {broker.bootstrap_servers} (process {broker.pid}). Ctrl-C stops it.", err=True)
            while True:
                broker.check()
                time.sleep(CHECK_INTERVAL_S)
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
