"""The caller's trace, for the service to go on with."""

import sys

__all__ = ["trace_headers"]


def trace_headers() -> dict[str, str]:
    """W3C headers of the current span; none where the caller does not use OpenTelemetry, which is not imported here."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.propagate import inject

    headers: dict[str, str] = {}
    inject(headers)
    return headers
