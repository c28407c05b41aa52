"""``fraud-pipeline webhook``: report new cases and stopped rules to an URL."""

import signal
import threading
from contextlib import closing

import click

from pipeline.broker.running import SERVICE_TIMEOUT_S, find_cluster
from pipeline.commands.progress import interrupts
from pipeline.observability.endpoint import Endpoint
from pipeline.observability.health import Health
from pipeline.observability.logs import configure_logging
from pipeline.observability.metric_declarations import WEBHOOK_METRICS
from pipeline.observability.metrics import DeclaredMetrics
from pipeline.settings import Settings
from pipeline.webhooks.sender import Sender, read_secret
from pipeline.webhooks.service import Webhook


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65_535), help="Port of the metrics.  [default: the setting metrics_port]"
)
def command(*, port: int | None) -> None:
    """Send new cases and stopped rules to FRAUD_PIPELINE_WEBHOOK_URL, signed, at least once, until stopped.

    It begins at the ends of the topics, and later where it has got to. Run one.
    """
    stop, settings, metrics = threading.Event(), Settings(), DeclaredMetrics(WEBHOOK_METRICS)
    configure_logging(settings)
    if not settings.webhook_url or settings.webhook_secret_file is None:
        raise click.UsageError("set FRAUD_PIPELINE_WEBHOOK_URL and FRAUD_PIPELINE_WEBHOOK_SECRET_FILE")
    sender = Sender(settings.webhook_url, read_secret(settings.webhook_secret_file), stop)
    where = settings.metrics_port if port is None else port
    endpoint = Endpoint(settings.metrics_host, where, metrics.registry, Health())
    with closing(Webhook(find_cluster(settings, SERVICE_TIMEOUT_S), settings, sender, metrics, stop)) as webhook:
        endpoint.start()
        try:
            with interrupts(stop, signal.SIGTERM):
                webhook.run()
        finally:
            endpoint.stop()
