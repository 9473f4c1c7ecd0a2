"""A chat generator that blends documents."""

from typing import Any

import openai
from haystack import Document, component
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, StreamingCallbackT
from haystack.tools import ToolsType
from haystack.utils import Secret
from haystack.utils.http_client import init_http_client

from kvblend.core.plan import SelectorName
from kvblend.core.rest import OrderName, Reuse
from kvblend.sdk.frameworks.blend_fields import BlendFields
from kvblend.sdk.frameworks.openai_requests import key_or_none, one_loops_client, openai_url, with_blend
from kvblend.sdk.haystack.documents import to_supplied
from kvblend.sdk.haystack.secrets import KEY_OF_ENVIRONMENT
from kvblend.sdk.haystack.told_blends import TOLD, tell_blends

__all__ = ["KVBlendChatGenerator"]


@component
class KVBlendChatGenerator(OpenAIChatGenerator):
    """A chat generator that blends documents in front of the last user message.

    The documents are those of `run`; those that are ingested are found in their collection by themselves. A reply's
    `meta["kvblend"]` holds the blend report and the sources. Everything else is as of `OpenAIChatGenerator`: tools,
    structured output, retries, streams, asyncio and errors.

    Where `api_base_url` is not given it is that of `KVBLEND_URL`; the key is that of `KVBLEND_API_KEY`, if it is set.
    """

    # Haystack makes the class anew, which super() would not know: the base is named.

    def __init__(
        self,
        *,
        model: str = "",
        collection: str | None = None,
        recompute_ratio: float | None = None,
        target_kl: float | None = None,
        selector: SelectorName | None = None,
        reuse: Reuse = "blend",
        order: OrderName | None = None,
        api_base_url: str | None = None,
        api_key: Secret = KEY_OF_ENVIRONMENT,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        timeout: float = 600.0,
        max_retries: int | None = None,
        tools: ToolsType | None = None,
        tools_strict: bool = False,
        http_client_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """`model`: empty is the one that the service serves. `collection` to `order`: as of `BlendFields`; pydantic's
        ValidationError, a ValueError, says what they cannot be. `timeout`: in seconds. The others: as of the base."""
        OpenAIChatGenerator.__init__(
            self,
            api_key=api_key,
            model=model,
            streaming_callback=streaming_callback,
            api_base_url=api_base_url,
            generation_kwargs=generation_kwargs,
            timeout=timeout,
            max_retries=max_retries,
            tools=tools,
            tools_strict=tools_strict,
            http_client_kwargs=http_client_kwargs,
        )
        self.blend = BlendFields(
            collection=collection,
            recompute_ratio=recompute_ratio,
            target_kl=target_kl,
            selector=selector,
            reuse=reuse,
            order=order,
        )

    def to_dict(self) -> dict[str, Any]:
        """Serialize this component. Raises ValueError where the key is a token: one of the environment is named."""
        data = OpenAIChatGenerator.to_dict(self)
        data["init_parameters"] |= self.blend.model_dump(mode="json")
        del data["init_parameters"]["organization"]
        return data

    def warm_up(self) -> None:
        """Make the blocking client."""
        if self.client is None:
            OpenAIChatGenerator.warm_up(self)
            assert self.client is not None
            tell_blends(self.client)

    async def warm_up_async(self) -> None:
        """Make the client of asyncio."""
        if self.async_client is None:
            client: Any = init_http_client(self.http_client_kwargs, async_client=True) or one_loops_client()
            self.async_client = openai.AsyncOpenAI(http_client=client, **self._client_kwargs())
            tell_blends(self.async_client)

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        documents: list[Document] | None = None,
        tools: ToolsType | None = None,
        tools_strict: bool | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Answer over documents. `messages`: a conversation, or a question; the others: as of the base."""
        result = OpenAIChatGenerator.run(
            self,
            messages,
            streaming_callback,
            {**(generation_kwargs or {}), "documents": documents or []},
            tools=tools,
            tools_strict=tools_strict,
        )
        return _reported(result)

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        documents: list[Document] | None = None,
        tools: ToolsType | None = None,
        tools_strict: bool | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """As `run`."""
        result = await OpenAIChatGenerator.run_async(
            self,
            messages,
            streaming_callback,
            {**(generation_kwargs or {}), "documents": documents or []},
            tools=tools,
            tools_strict=tools_strict,
        )
        return _reported(result)

    def _client_kwargs(self) -> dict[str, Any]:
        key = key_or_none(self.api_key.resolve_value())
        return {
            **OpenAIChatGenerator._client_kwargs(self),
            "base_url": openai_url(self.api_base_url),
            "api_key": key.get_secret_value(),
        }

    def _prepare_api_call(self, **call: Any) -> dict[str, Any]:
        fields = OpenAIChatGenerator._prepare_api_call(self, **call)
        endpoint = fields.pop("openai_endpoint")
        documents = [to_supplied(document) for document in fields.pop("documents") if document.content]
        if fields.get("stream"):
            fields.setdefault("stream_options", {"include_usage": True})
        return {**with_blend(fields, self.blend.blend_options(documents)), "openai_endpoint": endpoint}


def _reported(result: dict[str, list[ChatMessage]]) -> dict[str, list[ChatMessage]]:
    told = TOLD.get()
    if told is not None:
        for reply in result["replies"]:
            reply.meta["kvblend"] = told
    return result
