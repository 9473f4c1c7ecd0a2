"""How a service's log is written: lines for people, or JSON objects."""

import logging

from kvblend.api.request_context import log_fields
from kvblend.core.settings import LogFormat

__all__ = ["configure_logging"]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JSON = "%(asctime)s %(levelname)s %(name)s %(processName)s %(process)d %(message)s"
"""The fields that vLLM's own JSON lines have; beside them stands what a line says of its request."""


def configure_logging(log_format: LogFormat) -> None:
    """Log to standard error from INFO on; in JSON with the ids of the request that is being answered, of its trace and
    its span."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(log_format))
    handler.addFilter(_add_ids)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _formatter(log_format: LogFormat) -> logging.Formatter:
    if log_format == "text":
        return logging.Formatter(TEXT)
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(JSON)


def _add_ids(record: logging.LogRecord) -> bool:
    for name, value in log_fields().items():
        setattr(record, name, value)
    return True
