"""A scripted engine that stores KV as the connector does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvblend.core.plan import EncodeOrder
from kvblend.core.report import BlendReport
from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from tests.api.scripted_engine import ScriptedEngine
from tests.api.scripted_service import INFO
from tests.api.stored_encode import store_encode

__all__ = ["storing_engine"]


@contextmanager
def storing_engine(control_address: str, settings: Settings) -> Iterator[ScriptedEngine]:
    """Run it with its control channel, on the store of these settings."""
    from kvblend.vllm_connector.scheduler.control import ControlServer

    engine = ScriptedEngine(max_model_len=INFO.max_model_len, token_s=0.01)
    store, control = TieredStore.from_settings(settings), ControlServer(control_address, INFO)

    def ordered(params: dict[str, Any]) -> None:
        order = params.get("kvblend") or {}
        if "blend" in order:
            control.set_report(order["report_id"], BlendReport(outcome="blended"))
            return
        store_encode(store, engine.bodies[-1]["prompt"], EncodeOrder.model_validate(order["encode"]))
        control.set_encoded(order["report_id"], None)

    engine.ordered = ordered
    try:
        with engine.running():
            yield engine
    finally:
        control.close()
        store.close()
