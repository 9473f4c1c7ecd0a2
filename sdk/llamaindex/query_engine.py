"""Questions answered over the nodes of a retriever, blended."""

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle

from kvblend.sdk.llamaindex.llm import KVBlendLLM

__all__ = ["BlendSynthesizer", "KVBlendQueryEngine"]


class BlendSynthesizer(BaseSynthesizer):
    """Answers over nodes in one prompt, each a passage whose KV is reused.

    A response's `metadata["kvblend"]` holds the blend report and the sources; of a stream, when it is read.
    """

    def __init__(self, llm: KVBlendLLM, *, streaming: bool = False) -> None:
        # the helpers that cut texts to size are not used: the service says what does not fit
        helpers = {"prompt_helper": PromptHelper(), "chat_prompt_helper": ChatPromptHelper()}
        super().__init__(llm=llm, streaming=streaming, **helpers)
        self._chat = llm

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: dict[str, Any]) -> None:
        """It has none: the collection's preamble stands in front of the passages."""

    def synthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        told = dict[str, Any]()
        response = super().synthesize(
            query, nodes, additional_source_nodes, documents=nodes, told=told, **response_kwargs
        )
        return _reported(response, told)

    async def asynthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        told = dict[str, Any]()
        response = await super().asynthesize(
            query, nodes, additional_source_nodes, documents=nodes, told=told, **response_kwargs
        )
        return _reported(response, told)

    def get_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        *,
        documents: Sequence[NodeWithScore],
        told: dict[str, Any],
        **response_kwargs: Any,
    ) -> str | Generator[str, None, None]:
        messages = _asked(query_str)
        if not self._streaming:
            return _text(self._chat.chat(messages, documents=documents, **response_kwargs), told)
        pieces = self._chat.stream_chat(messages, documents=documents, **response_kwargs)
        return (_delta(piece, told) for piece in pieces)

    async def aget_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        *,
        documents: Sequence[NodeWithScore],
        told: dict[str, Any],
        **response_kwargs: Any,
    ) -> str | AsyncGenerator[str, None]:
        messages = _asked(query_str)
        if not self._streaming:
            return _text(await self._chat.achat(messages, documents=documents, **response_kwargs), told)
        pieces = await self._chat.astream_chat(messages, documents=documents, **response_kwargs)
        return (_delta(piece, told) async for piece in pieces)


class KVBlendQueryEngine(RetrieverQueryEngine):
    """Answers questions over the nodes of any retriever, blended by `BlendSynthesizer`; `source_nodes` holds them."""

    def __init__(
        self,
        retriever: BaseRetriever,
        llm: KVBlendLLM,
        *,
        streaming: bool = False,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
    ) -> None:
        super().__init__(
            retriever,
            response_synthesizer=BlendSynthesizer(llm, streaming=streaming),
            node_postprocessors=node_postprocessors,
        )


def _asked(question: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=question)]


def _text(response: ChatResponse, told: dict[str, Any]) -> str:
    told.update(response.additional_kwargs.get("kvblend", {}))
    return response.message.content or ""


def _delta(piece: ChatResponse, told: dict[str, Any]) -> str:
    told.update(piece.additional_kwargs.get("kvblend", {}))
    return piece.delta or ""


def _reported(response: RESPONSE_TYPE, told: dict[str, Any]) -> RESPONSE_TYPE:
    if response.metadata is not None:  # without nodes nothing was asked
        response.metadata["kvblend"] = told
    return response
