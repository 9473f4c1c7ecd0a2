"""Messages of the connector's control channel: one JSON object each way over a local ZeroMQ socket.

vLLM's streamed chunks carry no `kv_transfer_params`, and a passage's KV is committed after the response
that made it, so reports and commits are asked for here. The connector's scheduler half serves a ROUTER
socket at `KVBLEND_CONTROL`'s address (`Settings.control`); any number of clients connect with DEALER.
A reply carries the request's `id`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvblend.core.report import BlendReport

__all__ = ["MAX_HELD_NAMES", "ControlReply", "ControlRequest", "EngineInfo", "Held", "KVName", "channel_addresses"]

KVName = tuple[str, str]
"""What passage KV goes by beside its model: (encode context, passage id)."""
MAX_HELD_NAMES = 4096
"""That one request may ask for."""


def channel_addresses(address: str) -> list[str]:
    """The channels that a service's setting names: one, or those of all engines behind a router, commas between."""
    return [each.strip() for each in address.split(",")]


class ControlRequest(BaseModel):
    """`info`: what the engine is. `report`: the BlendReport of `report_id`. `encoded`: whether the encode
    order of `report_id` is committed. These two wait up to `wait_s` seconds for their answer. `held`: what of the
    passage KV of `names` lies near the engine, and how busy it is."""

    model_config = ConfigDict(extra="forbid")

    id: str
    op: Literal["info", "report", "encoded", "held"]
    report_id: str | None = None
    names: Annotated[Sequence[KVName], Field(max_length=MAX_HELD_NAMES)] = ()
    wait_s: Annotated[float, Field(ge=0, le=60)] = 0.0


class EngineInfo(BaseModel):
    """What a service must know of the engine to plan prompts and to look passages up in the store."""

    model: str
    model_fingerprint: str
    dtype: str
    block_size: int
    max_model_len: int
    head_ranges: list[tuple[int, int]]
    """The KV head range [start, end) that each tensor-parallel rank owns."""
    token_bytes: int
    """About what keys and values of one token take in all layers, of all ranks, by the codec that stores them."""
    default_recompute_ratio: float
    max_raw_logprobs: int = 0
    """How many of a token's likeliest a request may ask the model's own log-probabilities of; 0: of none."""
    salted: bool = False
    """Whether its KV, or the names of its blocks, leave it: a plan's request then has the plan's `cache_salt`."""
    proxied: bool = False
    """Whether it prefills for others, or has others prefill: what hands a request on replaces `kv_transfer_params`, so
    that an order goes in `vllm_xargs`, and a chat's prompt in its messages alone."""
    places: list[str] = []
    """Of its tiers on its host, fastest first: who names the same place sees the same files. Of an engine that cannot
    be asked what it holds: none."""


class Held(BaseModel):
    """What an engine has near: for each name that was asked for, whether all head ranges of it lie in tiers of its
    host. `num_requests`: that it works on or has waiting, whoever sent them."""

    passages: list[bool] = []
    num_requests: int = 0


class ControlReply(BaseModel):
    """`error` is set where the request was not understood. An unknown report is None; `encoded` is True once
    every rank's file is committed, False where the encode failed (`error` says how), None while it is not known."""

    id: str
    info: EngineInfo | None = None
    report: BlendReport | None = None
    encoded: bool | None = None
    held: Held | None = None
    error: str | None = None
