"""A soak of a scripted service for seconds, and what counts as flat."""

from pathlib import Path

import pytest

from kvblend.core.errors import InvalidRequestError
from kvblend.eval.bench.soak import soak_bench
from kvblend.eval.bench.soak_trend import trend
from tests.api.scripted_service import scripted_service


@pytest.mark.parametrize(
    ("rise", "flat"), [(0.0, True), (0.5, True), (4.0, False), (-5.0, True)], ids=["level", "little", "leak", "less"]
)
def test_a_rise_beyond_the_bound_is_not_flat(rise: float, flat: bool) -> None:
    """MiB a minute around 1000, over an hour of which the first half, where it warms up, does not count."""
    minutes = list(range(60))
    values = [(1000.0 if minute > 10 else 100.0 * minute) + rise * minute + 5 * (-1) ** minute for minute in minutes]
    row = trend("service_mib", [60.0 * minute for minute in minutes], values)
    assert row["flat"] is flat
    assert row["rise"] == pytest.approx(29 * rise, abs=2) and row["bound"] >= 64


def test_a_soak_samples_a_running_service(demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with scripted_service(tmp_path, model=demo_model_path, embedding_model=embedding_model_path) as service:
        plot = tmp_path / "soak.png"
        result = soak_bench(service.url, minutes=0.15, every_s=1, api_key=None, plot=plot, say=said.append)
    assert result["failures"] == {}
    assert {"query", "chat", "cut off"} <= result["requests"].keys()
    samples = result["samples"]
    assert len(samples["seconds"]) == len(said) >= 4
    assert all(value > 100 for value in samples["service_mib"]) and all(value > 3 for value in samples["service_files"])
    assert samples["engine_mib"] == [None] * len(said), "its vLLM is no child of it"
    assert {row["series"] for row in result["results"]} >= {"service_mib", "service_sockets", "disk_tier_mib"}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_service_elsewhere_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="port 9"):
        soak_bench("http://127.0.0.1:9", minutes=1, every_s=1, api_key=None, plot=None, say=print)
