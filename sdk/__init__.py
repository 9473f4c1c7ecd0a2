"""Python client of the REST service, synchronous and asynchronous; stands on core alone."""

from kvblend.sdk.async_client import AsyncClient
from kvblend.sdk.chat import BlendResult, ChatChunk, ChatCompletion
from kvblend.sdk.client import Client
from kvblend.sdk.routes import QueryEvent

__all__ = ["AsyncClient", "BlendResult", "ChatChunk", "ChatCompletion", "Client", "QueryEvent"]
