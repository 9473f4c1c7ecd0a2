"""Python client of the REST service, synchronous and asynchronous; stands on core alone."""

from kvblend.sdk.asynchronous.client import AsyncClient
from kvblend.sdk.chat import BlendResult, ChatChunk, ChatCompletion
from kvblend.sdk.routes import QueryEvent
from kvblend.sdk.synchronous.client import Client

__all__ = ["AsyncClient", "BlendResult", "ChatChunk", "ChatCompletion", "Client", "QueryEvent"]
