"""What was measured of the served model."""

from fastapi import APIRouter, Request

from kvblend.api.http.guarded_route import GuardedRoute, needs
from kvblend.api.service import service_of
from kvblend.core.calibration import Calibration
from kvblend.core.errors import NotFoundError

__all__ = ["router"]

router = APIRouter(prefix="/v1/calibration", tags=["quality"], route_class=GuardedRoute)


@router.get("")
@needs("query")
async def get_calibration(request: Request) -> Calibration:
    """The calibration of the model that is served: its measured curves, and the ratios that follow from them.

    404 where it has none; 503 where no vLLM server answers to say which model it is.
    """
    service = service_of(request)
    _, facts = await service.replicas.choose()
    calibration = None if facts.info is None else await service.calibration.of(facts.info)
    if calibration is None:
        raise NotFoundError(f"{facts.model} is not calibrated: `kvblend calibrate` measures which ratios it needs")
    return calibration
