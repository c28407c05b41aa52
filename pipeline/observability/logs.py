"""Logs of services: one format and one set of levels for the project, Faust and librdkafka."""

import json
import logging.config
import time
from typing import Any, Final

from pipeline.observability.terminal import printable_json, printable_lines
from pipeline.settings import Settings

TEXT_FORMAT: Final = "[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s"
_LEVELS_OF_LIBRARIES: Final = {"aiokafka": "warning", "faust": "warning", "mode": "warning"}
"""Levels of libraries: of Faust's own start and stop an operator needs to see what goes wrong."""


class TextFormatter(logging.Formatter):
    """Readable lines, in which what others wrote can neither steer a terminal nor pass for a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text, whose further lines are indented."""
        return printable_lines(super().format(record)).replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """Formats one JSON object a line: time (RFC 3339, UTC), level, logger, process, thread, message, any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{second}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = type(record.exc_info[1]).__name__
            line["traceback"] = self.formatException(record.exc_info)
        return printable_json(json.dumps(line, ensure_ascii=False))


def logging_config(settings: Settings, level: str | None = None) -> dict[str, Any]:
    """Return what `logging.config.dictConfig` takes.

    Args:
        settings: Format and levels.
        level: Least level of lines, in place of the first one of ``settings.log_levels``.
    """
    least, *others = settings.log_levels.split(",")
    levels = {**_LEVELS_OF_LIBRARIES, **dict(part.split("=") for part in others)}
    formatter = {"()": JsonFormatter} if settings.log_format == "json" else {"()": TextFormatter, "fmt": TEXT_FORMAT}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {name: {"level": level.upper()} for name, level in levels.items()},
        "root": {"level": (level or least).upper(), "handlers": ["stderr"]},
    }


def configure_logging(settings: Settings, level: str | None = None) -> None:
    """Log to the standard error; arguments as of `logging_config`."""
    logging.config.dictConfig(logging_config(settings, level))


def silence_clients() -> None:
    """Log nothing of what Kafka clients complain about: for commands that report the failure themselves."""
    logging.getLogger("pipeline.kafka").setLevel(logging.CRITICAL)
    for name in ("librdkafka", "cluster.errors"):
        logging.getLogger(f"pipeline.kafka.{name}").setLevel(logging.CRITICAL)
