"""A question asked until its answers are made of the same KV."""

import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["until_settled"]

TIMES = ("steps_ms", "ttft_ms")


def until_settled(ask: Callable[[], Mapping[str, Any]]) -> None:
    """Ask until two reports in a row say the same: what an answer lacks is encoded behind it, and is there for a later
    one. `ask` returns a report as JSON's values."""
    deadline = time.monotonic() + 240
    last: dict[str, Any] = {}
    while True:
        report = {name: value for name, value in ask().items() if name not in TIMES}
        if report == last and report["outcome"] != "prefilled" and not report["missed_passages"]:
            return
        assert time.monotonic() < deadline, (last, report)
        last = report
        time.sleep(0.2)
