"""`kvblend status`: whether the service and its vLLM answer, and how answers are held to full prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.console import Console

from kvblend.cli.connection import URL, APIKey, connect
from kvblend.cli.facts_table import facts_table
from kvblend.cli.json_output import AsJSON, print_json

if TYPE_CHECKING:
    from kvblend.core.rest import CalibrationState, GuardState

__all__ = ["status"]


def status(url: URL = None, api_key: APIKey = None, as_json: AsJSON = False) -> None:
    """Show whether the service is ready, with status 1 where it is not, and how its answers are held to full prefill.

    A vLLM server whose control channel does not answer is asked by full prefill alone.
    """
    with connect(url, api_key) as client:
        found = client.readiness()
    if as_json:
        print_json(found)
    else:
        facts: dict[str, str] = {"service": found.status}
        for number, engine in enumerate(found.engines):
            vllm = "answers" if engine.healthy else "does not answer"
            control = "answers" if engine.control else "does not answer: nothing is reused"
            facts[f"vLLM {number}"] = f"{vllm}; its control channel {control}"
        facts |= _calibration(found.calibration) | _guard(found.guard)
        Console().print(facts_table(facts))
    if found.status != "ready":
        raise typer.Exit(1)


def _calibration(state: CalibrationState | None) -> dict[str, str]:
    if state is None:
        return {}
    facts: dict[str, str] = {"calibration": state.status}
    if state.target_kl is not None:
        facts["target"] = f"a mean KL of {state.target_kl:g} nats"
    for kind, ratio in (state.recompute_ratios or {}).items():
        facts[f"recomputed {kind}"] = "in full" if ratio is None else f"{ratio:g}"
    return facts | ({"warning": state.warning} if state.warning else {})


def _guard(state: GuardState | None) -> dict[str, str]:
    if state is None:
        return {}
    kl = "" if state.mean_kl is None else f", a mean KL of {state.mean_kl:.4f} nats"
    missed = "; its target is missed" if state.misses_target else ""
    return {"guard": f"{state.num_compared} answers compared{kl}{missed}"}
