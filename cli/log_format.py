"""How a service's log is written: lines for people, or JSON objects."""

import logging

from kvblend.core.settings import LogFormat

__all__ = ["configure_logging"]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JSON = "%(asctime)s %(levelname)s %(name)s %(processName)s %(process)d %(message)s"
"""The fields that vLLM's own JSON lines have."""


def configure_logging(log_format: LogFormat) -> None:
    """Log to standard error from INFO on, Python's warnings too where it is JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(log_format == "json")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _formatter(log_format: LogFormat) -> logging.Formatter:
    if log_format == "text":
        return logging.Formatter(TEXT)
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(JSON)
