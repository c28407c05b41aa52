"""``fraud-pipeline compile``: compile the kernels into Numba's cache."""

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from pipeline.settings import Settings
from pipeline.settings.rate_table import fitting, read_rates


@click.command()
def command() -> None:
    """Compile the kernels of all agents into Numba's cache, or see that they are there.

    NUMBA_CACHE_DIR says where the cache is. Workers do the same on start; an image that ships the cache spares them
    that.
    """
    from agents.preparation import prepare_kernels, prepare_windows

    settings = Settings()
    rates = fitting(read_rates(settings), settings)
    with TemporaryDirectory() as directory:
        prepare_kernels(settings, rates, Path(directory) / "segments")
    prepare_windows()
