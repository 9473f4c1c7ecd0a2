"""How a service's log is written: lines for people, or JSON objects."""

import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvblend.core.settings import LogFormat

__all__ = ["configure_logging"]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JSON = "%(asctime)s %(levelname)s %(name)s %(processName)s %(process)d %(message)s"
"""The fields that vLLM's own JSON lines have."""
OTHERS_FIELDS = r"The '\w+' attribute with value .* was provided to the `Field\(\)` function"
"""What pydantic says of the models of another package, at each start."""


def configure_logging(log_format: "LogFormat") -> None:
    """Log to standard error from INFO on, Python's warnings too where it is JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(log_format == "json")
    for package in ("httpx", "faiss"):  # which say what they do, and which builds of themselves they tried
        logging.getLogger(package).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=OTHERS_FIELDS, category=UserWarning)


def _formatter(log_format: "LogFormat") -> logging.Formatter:
    if log_format == "text":
        return logging.Formatter(TEXT)
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(JSON)
