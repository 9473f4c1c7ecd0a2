"""A bucket of requests for each tenant."""

import pytest

from kvblend.api.access.admission import Admission
from kvblend.api.access.key_ring import KeyRing
from kvblend.api.access.rate_limits import RateLimits
from kvblend.api.access.shares import Shares
from kvblend.core.errors import RateLimitedError, TooManyRequestsError


class Clock:
    """Seconds that pass when a test says so."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_holds_a_minutes_requests_and_is_filled_evenly() -> None:
    clock, most = Clock(), {"acme": 6}
    limits = RateLimits(most.get, clock=clock)
    for _ in range(6):
        limits.take("acme")
    with pytest.raises(RateLimitedError, match="'acme' may send 6 requests a minute") as found:
        limits.take("acme")
    assert found.value.retry_after_s == pytest.approx(10)
    limits.take("beta")  # has no limit
    clock.now_s += 9.9
    with pytest.raises(RateLimitedError):
        limits.take("acme")
    clock.now_s += 0.2
    limits.take("acme")
    clock.now_s += 3600
    for _ in range(6):
        limits.take("acme")
    with pytest.raises(RateLimitedError):
        limits.take("acme")


def test_a_limit_may_change() -> None:
    clock, most = Clock(), {"acme": 1}
    limits = RateLimits(most.get, clock=clock)
    limits.take("acme")
    most["acme"] = 600
    with pytest.raises(RateLimitedError) as found:
        limits.take("acme")
    assert found.value.retry_after_s == pytest.approx(0.1)
    del most["acme"]
    limits.take("acme")


def test_places_are_given_back_whatever_happens() -> None:
    admission = Admission(2, Shares(KeyRing(None), share=1.0))
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), admission.place("answer", "default"):
            raise ZeroDivisionError
    with (
        admission.place("answer", "default"),
        admission.place("answer", "default"),
        pytest.raises(TooManyRequestsError, match="2 answers"),
        admission.place("answer", "default"),
    ):
        pass
    with admission.place("answer", "default"):
        pass


def test_lookups_and_uploads_have_places_of_their_own() -> None:
    admission = Admission(1, Shares(KeyRing(None), share=1.0))
    with (
        admission.place("answer", "default"),
        admission.place("lookup", "default"),
        admission.place("upload", "default"),
        admission.place("upload", "default"),
    ):
        for work in ("answer", "lookup"):
            with pytest.raises(TooManyRequestsError, match=f"1 {work}s"), admission.place(work, "default"):
                pass
