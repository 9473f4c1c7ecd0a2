"""A whole service in front of a scripted engine with the connector's control channel: all of it but the model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvblend.api import ServiceConfig
from kvblend.core.control import EngineInfo
from kvblend.core.plan import EncodeOrder, KVBlendParams
from kvblend.core.report import BlendReport
from kvblend.core.settings import Settings, TracingSettings
from tests.api.front import running
from tests.api.scripted_engine import ScriptedEngine

__all__ = ["ScriptedService", "scripted_service"]

INFO = EngineInfo(
    model="scripted",
    model_fingerprint="scripted",
    dtype="float32",
    block_size=16,
    max_model_len=100_000,
    head_ranges=[(0, 1)],
    token_bytes=1024,
    default_recompute_ratio=0.15,
)


@dataclass
class ScriptedService:
    """Where it answers, its folder, and the engine behind it."""

    url: str
    home: Path
    engine: ScriptedEngine
    others: Sequence[ScriptedEngine] = field(default_factory=tuple)


@contextmanager
def scripted_service(
    folder: Path,
    *,
    model: Path,
    embedding_model: Path,
    others: Sequence[ScriptedEngine] = (),
    info: EngineInfo = INFO,
    blend: Callable[[list[int], KVBlendParams], BlendReport] | None = None,
    encode: Callable[[list[int], EncodeOrder], None] | None = None,
    tracing: TracingSettings | None = None,
    **settings: Any,
) -> Iterator[ScriptedService]:
    """Run it in a thread. `others` are engines beside its own, with silent control channels.

    `blend` makes the report of a blend, `encode` keeps the KV of an encode order, both from the prompt's tokens.
    Without it encodes fail at once and without harm: there is no KV.
    """
    from kvblend.vllm_connector.scheduler.control import ControlServer

    engine = ScriptedEngine(max_model_len=INFO.max_model_len)
    with ExitStack() as stack:
        for each in (engine, *others):
            if not each.url:
                stack.enter_context(each.running())
        control = ControlServer(f"ipc://{folder}/control.sock", info)
        stack.callback(control.close)

        def ordered(params: dict[str, Any]) -> None:
            order = params.get("kvblend") or {}
            prompt = params.get("prompt_token_ids") or engine.bodies[-1].get("prompt", [])  # a chat's, a completion's
            if "encode" in order and encode is not None:
                encode(prompt, EncodeOrder.model_validate(order["encode"]))
                control.set_encoded(order["report_id"], None)
            elif "encode" in order:
                control.set_encoded(order["report_id"], "this engine keeps nothing")
            elif "blend" in order:
                told = blend(prompt, KVBlendParams.model_validate(order)) if blend else BlendReport(outcome="blended")
                control.set_report(order["report_id"], told)

        engine.ordered = ordered
        home = folder / "home"
        engines = [(engine.url, f"ipc://{folder}/control.sock")]
        engines += [(each.url, f"ipc://{folder}/silent{index}.sock") for index, each in enumerate(others)]
        config = ServiceConfig(
            model=str(model),
            embedding_model=embedding_model,
            engines=engines,
            settings=Settings(**{"home": home, "cpu_bytes": 0, "disk_bytes": 1 << 30, "cost_model": False, **settings}),
            tracing=tracing or TracingSettings(),
        )
        url = stack.enter_context(running(config))
        yield ScriptedService(url, home, engine, others)
