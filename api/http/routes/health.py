"""Probes and metrics."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from kvblend.api.http.guarded_route import GuardedRoute, needs, open_to_all
from kvblend.api.service import Service, service_of
from kvblend.core.errors import EngineUnavailableError
from kvblend.core.rest import CalibrationState, Readiness

__all__ = ["router"]

router = APIRouter(tags=["health"], route_class=GuardedRoute)


@router.get("/healthz")
@open_to_all
async def healthz() -> dict[str, str]:
    """The service's process runs."""
    return {"status": "ok"}


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
@needs("query", open_as="readyz")
async def readyz(request: Request) -> Response:
    """200 where some vLLM server answers; `control` says whether its control channel does, without which nothing is
    reused. `calibration` says how the model is held to one, with a warning where it cannot be blended; `guard` what
    the live guard has found, where it is on."""
    service = service_of(request)
    servers = await service.replicas.ready()
    ready = any(healthy for healthy, _ in servers)
    body: dict[str, Any] = {
        "status": "ready" if ready else "unavailable",
        "engines": [{"healthy": healthy, "control": control} for healthy, control in servers],
    }
    if ready and (calibration := await _calibration(service)) is not None:
        body["calibration"] = calibration.model_dump(exclude_none=True)
    if (guard := service.guard.state) is not None:
        body["guard"] = guard.model_dump()
    return JSONResponse(body, status_code=200 if ready else 503)


async def _calibration(service: Service) -> CalibrationState | None:
    """None where no engine answers to say what it serves."""
    try:
        _, facts = await service.replicas.choose()
    except EngineUnavailableError:
        return None
    return None if facts.info is None else await service.calibration.state(facts.info)


@router.get("/metrics")
@needs("operator", open_as="metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(await asyncio.to_thread(service_of(request).metrics.text), media_type=CONTENT_TYPE_LATEST)
