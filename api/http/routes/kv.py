"""The store of passage KV: what lies where, and what an operator does with it."""

from typing import TypeVar

from fastapi import APIRouter, Request

from kvblend.api.access.caller import caller_of
from kvblend.api.http.guarded_route import GuardedRoute, needs
from kvblend.api.service import service_of
from kvblend.core.rest import (
    KVCollection,
    KVCompress,
    KVCompressed,
    KVCount,
    KVLookup,
    KVMove,
    KVPairs,
    KVPairSelection,
    KVSelection,
    KVStats,
    KVSweep,
    KVVerifyReport,
)

__all__ = ["router"]

router = APIRouter(prefix="/v1/kv", tags=["kv"], route_class=GuardedRoute)

Selection = TypeVar("Selection", bound=KVCollection)


@router.get("/stats")
@needs("admin")
async def kv_stats(request: Request) -> KVStats:
    """What the store's tiers hold, fastest first: of all tenants' for the operator, else of the caller's own."""
    service, caller = service_of(request), caller_of(request)
    if caller.is_operator:
        return KVStats(tiers=await service.passage_kv.stats())
    return KVStats(tiers=await service.kv.stats(caller.tenant))


@router.post("/lookup")
@needs("admin")
async def lookup(request: Request, body: KVSelection) -> KVLookup:
    """Every file of the KV of a collection, of one document or of passages, by tier."""
    return await service_of(request).kv.lookup(_own(request, body))


@router.post("/pairs")
@needs("admin")
async def pairs(request: Request, body: KVPairSelection) -> KVPairs:
    """Which passages of a collection its prompts bring together, the heaviest pairs first."""
    return await service_of(request).kv.pairs(_own(request, body))


@router.post("/pin")
@needs("admin")
async def pin(request: Request, body: KVSelection) -> KVCount:
    """Keep KV from eviction until it is unpinned."""
    return await service_of(request).kv.pin(_own(request, body), pinned=True)


@router.post("/unpin")
@needs("admin")
async def unpin(request: Request, body: KVSelection) -> KVCount:
    """Let KV be evicted again."""
    return await service_of(request).kv.pin(_own(request, body), pinned=False)


@router.post("/move")
@needs("admin")
async def move(request: Request, body: KVMove) -> KVCount:
    """Bring KV to the fastest shared tier, or to the next slower one."""
    return await service_of(request).kv.move(_own(request, body))


@router.post("/compress")
@needs("admin")
async def compress(request: Request, body: KVCompress) -> KVCompressed:
    """Encode raw KV by a codec, in place; what lies in a remote tier stays as it is."""
    return await service_of(request).kv.compress(_own(request, body))


@router.post("/clear")
@needs("admin")
async def clear(request: Request, body: KVSelection) -> KVCount:
    """Delete KV from every tier; the documents stay."""
    return await service_of(request).kv.clear(_own(request, body))


@router.post("/verify")
@needs("operator")
async def verify(request: Request) -> KVVerifyReport:
    """Read and check every file of the shared tiers; it takes as long as reading them does."""
    return await service_of(request).kv.verify()


@router.post("/sweep")
@needs("operator")
async def sweep(request: Request) -> KVSweep:
    """Delete KV of this service that no collection holds, and what tenants without a key had supplied."""
    return KVSweep(num_passages=await service_of(request).deletions.sweep())


def _own(request: Request, selection: Selection) -> Selection:
    """A selection by what the catalog calls the caller's collection. Raises NotFoundError."""
    return selection.model_copy(update={"collection": caller_of(request).collection(selection.collection)})
