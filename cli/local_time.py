"""Points in time as the command's tables have them."""

from datetime import datetime

__all__ = ["local_time"]


def local_time(seconds: float) -> str:
    """Of seconds since the epoch, in the machine's own time zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
