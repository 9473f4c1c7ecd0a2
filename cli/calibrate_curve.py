"""Measure a model's curve: divergence against recompute ratio, and further ratios where the target is met."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from statistics import fmean

from rich.progress import Progress

from kvblend.api.blend_prompt import BlendPrompt
from kvblend.api.encoder import Encoder
from kvblend.api.metrics import Metrics
from kvblend.api.passage_kv import KVName, PassageKV
from kvblend.api.replica import Replica, Replicas
from kvblend.cli.calibrate_bound import mean_upper95
from kvblend.cli.calibrate_engine import CalibratedEngine
from kvblend.cli.calibrate_measure import Divergence, PromptMeter, drop_passages, engine_facts, store_passages
from kvblend.cli.calibrate_search import FIRST_RATIOS, next_ratio
from kvblend.core.calibration import CurvePoint
from kvblend.core.control import EngineInfo
from kvblend.store import TieredStore

__all__ = ["measure_curve"]


async def measure_curve(
    engine: CalibratedEngine, prompts: Sequence[BlendPrompt], *, target_kl: float, progress: Progress
) -> tuple[EngineInfo, tuple[CurvePoint, ...]]:
    """Returns what the engine is and its curve, ascending. What was stored for it is deleted again.

    Raises EngineUnavailableError, and KVBlendError where a prompt cannot be blended.
    """
    async with AsyncExitStack() as stack:
        passage_kv = PassageKV(TieredStore.from_settings(engine.settings))
        stack.push_async_callback(passage_kv.close)
        replica = Replica(engine.url, engine.control)
        replicas = Replicas([replica])
        stack.push_async_callback(replicas.close)
        encoder = Encoder(replicas, passage_kv, Metrics())
        stack.push_async_callback(encoder.close)
        facts, info = await engine_facts(replica)
        stored: list[KVName] = []
        stack.push_async_callback(drop_passages, passage_kv, info, stored)
        measured: dict[float, list[Divergence]] = {ratio: [] for ratio in FIRST_RATIOS}
        meters = []
        task = progress.add_task("questions", total=len(prompts))
        for prompt in prompts:
            stored += await store_passages(encoder, prompt)
            meters.append(PromptMeter(replica, facts, prompt))
            for ratio, divergences in measured.items():
                divergences.append(await meters[-1].measure(ratio))
            progress.advance(task)
        while (further := next_ratio(_curve(measured), target_kl)) is not None:
            task = progress.add_task(f"ratio {further:g}", total=len(prompts))
            measured[further] = []
            for meter in meters:
                measured[further].append(await meter.measure(further))
                progress.advance(task)
        return info, _curve(measured)


def _curve(measured: dict[float, list[Divergence]]) -> tuple[CurvePoint, ...]:
    points = []
    for ratio, divergences in sorted(measured.items()):
        kls = [divergence.kl for divergence in divergences]
        points.append(
            CurvePoint(
                recompute_ratio=ratio,
                kl=fmean(kls),
                kl_upper95=mean_upper95(kls),
                agreement=fmean(divergence.agreement for divergence in divergences),
            )
        )
    return tuple(points)
