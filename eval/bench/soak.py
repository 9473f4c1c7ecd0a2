"""Run a service under mixed traffic, and see whether what it holds stays flat."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from kvblend.core.errors import KVBlendError
from kvblend.core.machine import cpu_name
from kvblend.eval.bench.soak_processes import ServiceProcesses
from kvblend.eval.bench.soak_traffic import SoakTraffic
from kvblend.eval.bench.soak_trend import soak_plot, trend

__all__ = ["soak_bench"]

MIB = 1 << 20
LEAST_SAMPLES = 8
BLOCKS_IN_USE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")


def soak_bench(
    url: str, *, minutes: float, every_s: float, api_key: str | None, plot: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Returns {minutes, requests, failures, results, samples} of the service at `url`, on this machine.

    `requests`, `failures`: by kind. `results`: of each series whether it is `flat`, as `trend` says. `samples`: of
    `seconds` and each series: memory of the service and of the vLLM that is its child, their open files and sockets,
    the share of vLLM's KV blocks in use, and what lies in the tiers; None where something did not answer.

    Raises InvalidRequestError where the service's processes are not this machine's, KVBlendError where it does not
    answer.
    """
    return asyncio.run(_soak(url, minutes * 60, every_s, api_key, plot, say))


async def _soak(
    url: str, seconds: float, every_s: float, api_key: str | None, plot: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    processes = ServiceProcesses(httpx.URL(url).port or 80)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, trust_env=False) as http:
        try:
            (await http.get("/readyz")).raise_for_status()
        except httpx.HTTPError as error:
            raise KVBlendError(f"the service at {url} is not ready: {error}") from error
        every_s = min(every_s, seconds / LEAST_SAMPLES)
        times: list[float] = []
        rows: list[dict[str, float | None]] = []
        async with SoakTraffic(http) as traffic:
            running = asyncio.create_task(traffic.run())
            began = time.monotonic()
            try:
                while (at := time.monotonic() - began) < seconds:
                    if running.done():
                        running.result()  # raises what ended it
                    times.append(at)
                    rows.append(await _sample(http, processes))
                    say(f"{at / 60:.1f} min: {dict(traffic.num_done)}, {sum(traffic.failures.values())} failures")
                    await asyncio.sleep(every_s)
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
    series = {name: [row[name] for row in rows] for name in rows[0]}
    if plot is not None:
        soak_plot(times, series, plot)
    return {
        "machine": {"cpu": cpu_name()},
        "minutes": seconds / 60,
        "requests": dict(traffic.num_done),
        "failures": dict(traffic.failures),
        "results": [row for name, values in series.items() if (row := _row(name, times, values)) is not None],
        "samples": {"seconds": times, **series},
    }


def _row(name: str, times: list[float], values: list[float | None]) -> dict[str, Any] | None:
    """None where the series has no samples, as of a vLLM elsewhere."""
    known = [(at, value) for at, value in zip(times, values, strict=True) if value is not None]
    return trend(name, [at for at, _ in known], [value for _, value in known]) if known else None


async def _sample(http: httpx.AsyncClient, processes: ServiceProcesses) -> dict[str, float | None]:
    service, engine = await asyncio.to_thread(processes.service), await asyncio.to_thread(processes.engine)
    tiers: dict[str, int] = {}
    with contextlib.suppress(httpx.HTTPError):
        answer = await http.get("/v1/kv/stats")
        tiers = {tier["name"]: tier["used_bytes"] for tier in answer.raise_for_status().json()["tiers"]}
    return {
        "service_mib": service.memory_mib,
        "engine_mib": engine.memory_mib if engine else None,
        "service_files": service.num_files,
        "engine_files": engine.num_files if engine else None,
        "service_sockets": service.num_sockets,
        "engine_sockets": engine.num_sockets if engine else None,
        "kv_blocks_share": await _blocks_in_use(processes),
        "cpu_tier_mib": tiers["cpu"] / MIB if "cpu" in tiers else None,
        "disk_tier_mib": tiers["disk"] / MIB if "disk" in tiers else None,
    }


async def _blocks_in_use(processes: ServiceProcesses) -> float | None:
    url = await asyncio.to_thread(processes.engine_url)
    if url is None:
        return None
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            lines = (await http.get(f"{url}/metrics")).text.splitlines()
    except httpx.HTTPError:
        return None
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(BLOCKS_IN_USE)), None)
