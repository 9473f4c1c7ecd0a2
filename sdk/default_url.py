"""Where a service is that nobody says anything else of."""

__all__ = ["DEFAULT_URL"]

DEFAULT_URL = "http://127.0.0.1:8000"
