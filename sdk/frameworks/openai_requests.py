"""How a framework's OpenAI client reaches the service, what it sends with a blend, and what an answer says of one."""

import inspect
from collections.abc import Mapping
from typing import Any

import httpx
import openai
from pydantic import SecretStr

from kvblend.core.rest import BlendOptions
from kvblend.sdk.chat import blend_field
from kvblend.sdk.connection import tls
from kvblend.sdk.frameworks.environment import api_key_of_environment, url_of_environment

__all__ = ["blend_of", "key_or_none", "one_loops_client", "openai_url", "with_blend"]

OPENAI_FIELDS = {*inspect.signature(openai.resources.chat.Completions.create).parameters}
NO_KEY = "none"
"""What OpenAI's client shows a service that asks for no key: it refuses to have none itself."""


def openai_url(base_url: str | None) -> str:
    """Where the service's OpenAI routes are; None: the service of `KVBLEND_URL`."""
    url = str(base_url or url_of_environment()).rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def key_or_none(api_key: SecretStr | str | None) -> SecretStr:
    """The key to show; None: that of `KVBLEND_API_KEY`, else one that stands for none."""
    key = api_key or api_key_of_environment() or NO_KEY
    return SecretStr(key) if isinstance(key, str) else key


def one_loops_client() -> httpx.AsyncClient:
    """A client that keeps no connection for the next event loop, where it would be of no use any more."""
    return httpx.AsyncClient(verify=tls(), limits=httpx.Limits(max_keepalive_connections=0))


def with_blend(fields: Mapping[str, Any], options: BlendOptions) -> dict[str, Any]:
    """What OpenAI's client is called with, of a chat's fields: an empty `model` is the one served, and what OpenAI does
    not know, vLLM's fields and the blend, stands in `extra_body`."""
    payload = {**fields, "model": fields.get("model") or openai.omit}
    ours = {name: payload.pop(name) for name in payload.keys() - OPENAI_FIELDS}
    if options != BlendOptions():
        ours["kvblend"] = blend_field(options)
    if ours:
        payload["extra_body"] = {**(payload.get("extra_body") or {}), **ours}
    return payload


def blend_of(answer: Any) -> dict[str, Any] | None:
    """The `kvblend` field of an answer or of one of its chunks, as OpenAI's client or LangChain has it."""
    if not isinstance(answer, Mapping):
        answer = getattr(answer, "model_extra", None) or {}
    field: dict[str, Any] | None = answer.get("kvblend")
    return field
