"""LangChain: a retriever over a collection, and a chat model that blends the documents that any retriever returned.

chat = ChatKVBlend()
chain = {"documents": retriever, "question": RunnablePassthrough()} | blend_documents(chat)
chain.invoke("When was the bridge opened?").response_metadata["kvblend"]
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForLLMRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    UsageMetadata,
    convert_to_openai_messages,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import ConfigDict, Field, SecretStr

from kvblend.core.plan import SelectorName
from kvblend.core.rest import BlendOptions, Reuse, Source, SuppliedDocument
from kvblend.sdk import AsyncClient, BlendResult, ChatChunk, ChatCompletion, Client
from kvblend.sdk.chat import ChatUsage
from kvblend.sdk.connection import DEFAULT_URL

__all__ = ["ChatKVBlend", "KVBlendRetriever", "blend_documents"]


def _secret(api_key: SecretStr | None) -> str | None:
    return None if api_key is None else api_key.get_secret_value()


def to_document(source: Source) -> Document:
    """Turn a retrieved passage into a LangChain document whose id is the passage id."""
    found = {"document_id": source.document_id, "document_name": source.document_name, "score": source.score}
    return Document(id=source.passage_id, page_content=source.text, metadata={**source.metadata, **found})


def to_supplied(document: Document) -> SuppliedDocument:
    """Turn a LangChain document into a passage to blend."""
    return SuppliedDocument(text=document.page_content, id=document.id, metadata=document.metadata)


def to_usage(usage: ChatUsage | None) -> UsageMetadata | None:
    if usage is None:
        return None
    return UsageMetadata(
        input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
    )


def _blended(result: BlendResult | None) -> dict[str, Any]:
    return {} if result is None else {"kvblend": result.model_dump(mode="json")}


class KVBlendRetriever(BaseRetriever):
    """Retrieves passages from a collection of a kvblend service, best first."""

    collection: str
    base_url: str = DEFAULT_URL
    api_key: SecretStr | None = None
    timeout_s: float = 60.0
    k: int = 8
    """How many passages to retrieve."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        with Client(self.base_url, api_key=_secret(self.api_key), timeout_s=self.timeout_s) as client:
            sources = client.search(self.collection, query, top_k=self.k if k is None else k)
        return [to_document(source) for source in sources]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        async with AsyncClient(self.base_url, api_key=_secret(self.api_key), timeout_s=self.timeout_s) as client:
            sources = await client.search(self.collection, query, top_k=self.k if k is None else k)
        return [to_document(source) for source in sources]


class ChatKVBlend(BaseChatModel):
    """A chat model that blends documents in front of the last user message.

    The documents are `documents`, or those of `with_documents`. A message's `response_metadata["kvblend"]` holds the
    blend report and the sources. Errors are those of `kvblend.core.errors`.
    """

    model_config = ConfigDict(populate_by_name=True)

    model_name: str | None = Field(default=None, alias="model")
    """None is the model that the service serves."""
    base_url: str = DEFAULT_URL
    api_key: SecretStr | None = None
    timeout_s: float = Field(default=600.0, alias="timeout")
    temperature: float | None = 0.0
    max_tokens: int | None = None
    stop: list[str] | None = None
    documents: list[Document] = Field(default_factory=list)
    collection: str | None = None
    """The collection whose preamble and warm context the passages are encoded behind."""
    recompute_ratio: float | None = None
    target_kl: float | None = None
    selector: SelectorName | None = None
    reuse: Reuse = "blend"

    @property
    def _llm_type(self) -> str:
        return "kvblend"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # What an answer depends on: LangChain's caches take it as their key.
        fields = {"model_name", "base_url", "temperature", "max_tokens", "stop"}
        return {**self.model_dump(include=fields), "blend": self._blend(None).model_dump(mode="json")}

    def with_documents(self, documents: Sequence[Document]) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with the documents to blend bound to it."""
        return self.bind(documents=list(documents))

    def _blend(self, documents: Sequence[Document] | None) -> BlendOptions:
        chosen = self.documents if documents is None else documents
        return BlendOptions(
            documents=[to_supplied(document) for document in chosen if document.page_content],
            collection=self.collection,
            recompute_ratio=self.recompute_ratio,
            target_kl=self.target_kl,
            selector=self.selector,
            reuse=self.reuse,
        )

    def _request(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        *,
        documents: Sequence[Document] | None = None,
        **openai_fields: Any,
    ) -> dict[str, Any]:
        """Build the arguments of `Client.chat`. Fields that LangChain does not know go to the service as they are."""
        extra = {"temperature": self.temperature, "max_tokens": self.max_tokens, "stop": stop or self.stop}
        extra |= openai_fields
        return {
            "messages": convert_to_openai_messages(list(messages)),
            "model": self.model_name,
            "blend": self._blend(documents),
            "extra": {name: value for name, value in extra.items() if value is not None},
        }

    def _client(self) -> Client:
        return Client(self.base_url, api_key=_secret(self.api_key), timeout_s=self.timeout_s)

    def _async_client(self) -> AsyncClient:
        # One for each call: its connections belong to the running event loop.
        return AsyncClient(self.base_url, api_key=_secret(self.api_key), timeout_s=self.timeout_s)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._client() as client:
            return to_result(client.chat(**self._request(messages, stop, **kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with self._async_client() as client:
            return to_result(await client.chat(**self._request(messages, stop, **kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self._client() as client:
            for chunk in client.stream_chat(**self._request(messages, stop, **kwargs)):
                generation = to_generation_chunk(chunk)
                if run_manager is not None:
                    run_manager.on_llm_new_token(generation.text, chunk=generation)
                yield generation

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with self._async_client() as client:
            async for chunk in client.stream_chat(**self._request(messages, stop, **kwargs)):
                generation = to_generation_chunk(chunk)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(generation.text, chunk=generation)
                yield generation


def to_result(completion: ChatCompletion) -> ChatResult:
    """Turn a whole answer into LangChain's."""
    choice = completion.choices[0]
    message = AIMessage(
        content=choice.message.content or "",
        id=completion.id,
        usage_metadata=to_usage(completion.usage),
        response_metadata={
            "model_name": completion.model,
            "finish_reason": choice.finish_reason,
            **_blended(completion.kvblend),
        },
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def to_generation_chunk(chunk: ChatChunk) -> ChatGenerationChunk:
    """Turn a piece of an answer into LangChain's. LangChain joins equal names of metadata, so each is given once."""
    choice = chunk.choices[0] if chunk.choices else None
    finished = {} if choice is None or choice.finish_reason is None else {"finish_reason": choice.finish_reason}
    message = AIMessageChunk(
        content="" if choice is None else choice.delta.content or "",
        id=chunk.id,
        usage_metadata=to_usage(chunk.usage),
        response_metadata={
            **({"model_name": chunk.model, **finished} if finished else {}),
            **_blended(chunk.kvblend),
        },
    )
    return ChatGenerationChunk(message=message)


def blend_documents(chat: ChatKVBlend) -> Runnable[Mapping[str, Any], AIMessage]:
    """Return a runnable that answers `question` (a string or messages) over `documents`, both named in its input."""

    def over(inputs: Mapping[str, Any]) -> Runnable[Mapping[str, Any], AIMessage]:
        return RunnableLambda[Mapping[str, Any], Any](itemgetter("question")) | chat.with_documents(inputs["documents"])

    return RunnableLambda(over)
