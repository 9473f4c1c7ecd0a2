"""A circuit breaker opens, lets one call through now and then, and closes again."""

import time

import pytest

from kvblend.core.breaker import CircuitBreaker


def opened(*, pause_s: float, longest_pause_s: float) -> CircuitBreaker:
    breaker = CircuitBreaker("server", max_failures=2, pause_s=pause_s, longest_pause_s=longest_pause_s)
    assert breaker.allows()
    breaker.failed(OSError("gone"))
    assert breaker.allows() and not breaker.is_open, "one failure is none"
    breaker.failed(OSError("gone"))
    assert breaker.is_open
    return breaker


def test_it_lets_one_call_through_after_each_pause() -> None:
    breaker = opened(pause_s=0.3, longest_pause_s=0.5)
    assert not breaker.allows()
    time.sleep(0.31)
    assert breaker.allows() and not breaker.allows(), "one at a time"
    breaker.failed(OSError("gone"))
    assert not breaker.allows()
    time.sleep(0.51)
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows() and breaker.allows() and not breaker.is_open


def test_a_success_in_between_counts_failures_anew(caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker("server", max_failures=2, pause_s=60)
    for _ in range(3):
        breaker.failed(OSError("gone"))
        breaker.succeeded()
    assert breaker.allows() and not caplog.records


def test_each_change_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    breaker = opened(pause_s=0.0, longest_pause_s=0.0)
    for _ in range(3):
        assert breaker.allows()
        breaker.failed(OSError("gone"))
    assert breaker.allows()
    breaker.succeeded()
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "the server failed 2 times in a row: it is not asked until it answers again",
        "the server answers again",
    ]
