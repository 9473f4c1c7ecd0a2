"""Measure a model's curves: divergence against recompute ratio, and further ratios where the target is met."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from statistics import fmean

from rich.progress import Progress

from kvblend.api.engine.replicas import Replica, Replicas
from kvblend.api.kv.encoder import Encoder
from kvblend.api.kv.passage_kv import KVName, PassageKV
from kvblend.api.metrics import Metrics
from kvblend.core.calibration import ENCODE_KINDS, CurvePoint, EncodeKind, KindCalibration, smallest_ratio
from kvblend.core.control import EngineInfo
from kvblend.eval.calibration.bound import mean_upper95
from kvblend.eval.calibration.engine import CalibratedEngine
from kvblend.eval.calibration.few_at_once import few_at_once
from kvblend.eval.calibration.measure import Divergence, PromptMeter, drop_passages, engine_facts, store_passages
from kvblend.eval.calibration.prompts import CalibrationPrompt
from kvblend.eval.calibration.search import FIRST_RATIOS, next_ratio
from kvblend.store import TieredStore

__all__ = ["measure_kinds"]

Measured = dict[float, list[Divergence]]


async def measure_kinds(
    engine: CalibratedEngine,
    prompts: Sequence[CalibrationPrompt],
    *,
    target_kl: float,
    target_agreement: float,
    progress: Progress,
) -> tuple[EngineInfo, dict[EncodeKind, KindCalibration]]:
    """Returns what the engine is, and each kind's curve, ascending. What was stored for it is deleted again.

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
        measured: dict[EncodeKind, Measured] = {kind: {ratio: [] for ratio in FIRST_RATIOS} for kind in ENCODE_KINDS}
        meters = []
        task = progress.add_task("questions", total=len(prompts))
        for prompt in prompts:
            stored += await store_passages(encoder, prompt)
            meters.append(PromptMeter(replica, facts, prompt))
            places = [(kind, ratio) for kind, ratios in measured.items() for ratio in ratios]
            divergences = await few_at_once([partial(meters[-1].measure, *place) for place in places])
            for (kind, ratio), divergence in zip(places, divergences, strict=True):
                measured[kind][ratio].append(divergence)
            progress.advance(task)
        kinds = {}
        for kind, ratios in measured.items():
            while (further := next_ratio(_curve(ratios), target_kl, target_agreement)) is not None:
                task = progress.add_task(f"{kind}, ratio {further:g}", total=len(prompts))
                ratios[further] = await few_at_once(
                    [partial(meter.measure, kind, further) for meter in meters], partial(progress.advance, task)
                )
            curve = _curve(ratios)
            kinds[kind] = KindCalibration(
                recompute_ratio=smallest_ratio(curve, target_kl, target_agreement), curve=curve
            )
        return info, kinds


def _curve(measured: Measured) -> tuple[CurvePoint, ...]:
    points = []
    for ratio, divergences in sorted(measured.items()):
        kls = [divergence.kl for divergence in divergences]
        points.append(
            CurvePoint(
                recompute_ratio=ratio,
                kl=fmean(kls),
                kl_upper95=mean_upper95(kls),
                agreement=fmean(divergence.agreement for divergence in divergences),
                first_agreement=fmean(divergence.first_agrees for divergence in divergences),
                same_answer=fmean(divergence.same_answer for divergence in divergences),
            )
        )
    return tuple(points)
