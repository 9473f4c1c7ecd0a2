"""A chat model that blends documents."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

import openai
from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import Field, model_validator

from kvblend.core.rest import BlendOptions
from kvblend.sdk.chat import blend_field
from kvblend.sdk.frameworks.blend_fields import BlendFields
from kvblend.sdk.frameworks.openai_requests import blend_of, key_or_none, one_loops_client, openai_url, with_blend
from kvblend.sdk.langchain.documents import to_supplied

__all__ = ["ChatKVBlend", "blend_documents"]


class ChatKVBlend(BlendFields, BaseChatOpenAI):
    """A chat model that blends documents in front of the last user message.

    The documents are `documents`, or those of `with_documents`; those that are ingested are found in their collection
    by themselves. A message's `response_metadata["kvblend"]` holds the blend report and the sources. Everything else
    is as of `langchain_openai.ChatOpenAI`: tools, structured output, retries, streams, usage and errors.

    Where `base_url` or `api_key` is not given it is that of `KVBLEND_URL` or `KVBLEND_API_KEY`.
    """

    model_name: str = Field(default="", alias="model")
    """Empty: the model that the service serves."""
    temperature: float | None = 0.0
    stream_usage: bool | None = True
    documents: list[Document] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _reach_the_service(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = dict(values)
        url = given.pop("base_url", None) or given.pop("openai_api_base", None)
        key = given.pop("api_key", None) or given.pop("openai_api_key", None)
        if given.get("model", "") is None:
            del given["model"]
        if not given.get("openai_proxy"):
            given.setdefault("http_async_client", one_loops_client())
        return {**given, "base_url": openai_url(url), "api_key": key_or_none(key)}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: `langchain_core.load` writes it without its key, and reads it where this class is allowed."""
        return True

    @property
    def _llm_type(self) -> str:
        return "kvblend"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # What an answer depends on: LangChain's caches take it as their key.
        return {
            **super()._identifying_params,
            "base_url": self.openai_api_base,
            "blend": blend_field(self._blend(None)),
        }

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"openai_api_key": "KVBLEND_API_KEY"}

    def with_documents(self, documents: Sequence[Document]) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with the documents to blend bound to it."""
        return self.bind(documents=list(documents))

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["function_calling", "json_mode", "json_schema"] = "json_schema",
        include_raw: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """As of `ChatOpenAI`; vLLM holds the model to a `json_schema` as it generates."""
        return super().with_structured_output(schema, method=method, include_raw=include_raw, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """The served model's tokens of a text, by its own tokenizer."""
        return self._tokenized({"prompt": text, "add_special_tokens": False})

    def get_num_tokens_from_messages(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
        **kwargs: Any,
    ) -> int:
        """The number of tokens of a conversation, by the served model's own chat template."""
        body: dict[str, Any] = {"messages": convert_to_openai_messages(list(messages))}
        if tools:
            body["tools"] = [convert_to_openai_tool(tool) for tool in tools]
        return len(self._tokenized(body))

    def _tokenized(self, body: dict[str, Any]) -> list[int]:
        root = str(self.openai_api_base).removesuffix("/v1")
        answer = self.root_client.post(f"{root}/tokenize", body=self._named(body), cast_to=dict[str, Any])
        tokens: list[int] = answer["tokens"]
        return tokens

    def _named(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"model": self.model_name, **body} if self.model_name else body

    def _blend(self, documents: Sequence[Document] | None) -> BlendOptions:
        chosen = self.documents if documents is None else documents
        return self.blend_options([to_supplied(document) for document in chosen if document.page_content])

    def _get_request_payload(
        self,
        input_: LanguageModelInput,
        *,
        stop: list[str] | None = None,
        documents: Sequence[Document] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        payload = super()._get_request_payload(input_, stop=stop, **kwargs)
        return with_blend(payload, self._blend(documents))

    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        field = blend_of(response)
        if field is not None:
            for generation in result.generations:
                generation.message.response_metadata["kvblend"] = field
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        made = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        field = blend_of(chunk) or blend_of(chunk.get("chunk"))
        if made is not None and field is not None:
            made.message.response_metadata["kvblend"] = field
        return made


def blend_documents(chat: ChatKVBlend) -> Runnable[Mapping[str, Any], AIMessage]:
    """Return a runnable that answers `question` (a string or messages) over `documents`, both named in its input."""

    def over(inputs: Mapping[str, Any]) -> Runnable[Mapping[str, Any], AIMessage]:
        return RunnableLambda[Mapping[str, Any], Any](itemgetter("question")) | chat.with_documents(inputs["documents"])

    return RunnableLambda(over)
