"""The store of passage KV: what lies where, and what an operator does with it."""

from fastapi import APIRouter, Request

from kvblend.api.json_body import StrictRoute
from kvblend.api.service import service_of
from kvblend.core.rest import (
    KVCompress,
    KVCompressed,
    KVCount,
    KVLookup,
    KVMove,
    KVSelection,
    KVStats,
    KVSweep,
    KVVerifyReport,
)

__all__ = ["router"]

router = APIRouter(prefix="/v1/kv", tags=["kv"], route_class=StrictRoute)


@router.get("/stats")
async def kv_stats(request: Request) -> KVStats:
    """What the store's tiers hold, fastest first."""
    return KVStats(tiers=await service_of(request).passage_kv.stats())


@router.post("/lookup")
async def lookup(request: Request, body: KVSelection) -> KVLookup:
    """Every file of the KV of a collection, of one document or of passages, by tier."""
    return await service_of(request).kv.lookup(body)


@router.post("/pin")
async def pin(request: Request, body: KVSelection) -> KVCount:
    """Keep KV from eviction until it is unpinned."""
    return await service_of(request).kv.pin(body, pinned=True)


@router.post("/unpin")
async def unpin(request: Request, body: KVSelection) -> KVCount:
    """Let KV be evicted again."""
    return await service_of(request).kv.pin(body, pinned=False)


@router.post("/move")
async def move(request: Request, body: KVMove) -> KVCount:
    """Bring KV to the fastest shared tier, or to the next slower one."""
    return await service_of(request).kv.move(body)


@router.post("/compress")
async def compress(request: Request, body: KVCompress) -> KVCompressed:
    """Encode raw KV by a codec, in place; what lies in a remote tier stays as it is."""
    return await service_of(request).kv.compress(body)


@router.post("/clear")
async def clear(request: Request, body: KVSelection) -> KVCount:
    """Delete KV from every tier; the documents stay."""
    return await service_of(request).kv.clear(body)


@router.post("/verify")
async def verify(request: Request) -> KVVerifyReport:
    """Read and check every file of the shared tiers; it takes as long as reading them does."""
    return await service_of(request).kv.verify()


@router.post("/sweep")
async def sweep(request: Request) -> KVSweep:
    """Delete the KV of this service's collections that none of them holds."""
    return KVSweep(num_passages=await service_of(request).deletions.sweep())
