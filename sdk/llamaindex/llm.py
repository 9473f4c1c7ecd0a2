"""An LLM that blends nodes."""

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.llms.openai_like import OpenAILike
from pydantic import ConfigDict, Field

from kvblend.sdk.frameworks.blend_fields import BlendFields
from kvblend.sdk.frameworks.openai_requests import blend_of, key_or_none, one_loops_client, openai_url, with_blend
from kvblend.sdk.llamaindex.nodes import to_supplied

__all__ = ["KVBlendLLM"]

TIMEOUT_S = 600.0  # as of the SDK's own client


class KVBlendLLM(OpenAILike, BlendFields):
    """An LLM that blends nodes in front of the last user message: `llm.chat(messages, documents=nodes)`.

    Those that are ingested are found in their collection by themselves. A response's `additional_kwargs["kvblend"]`
    holds the blend report and the sources, in a stream that of the last piece. Everything else is as of `OpenAILike`:
    tools, structured output, retries, streams, asyncio and errors.

    Where `api_base` or `api_key` is not given it is that of `KVBLEND_URL` or `KVBLEND_API_KEY`.
    """

    model_config = ConfigDict(extra="forbid")

    api_key: str | None = Field(default=None, exclude=True, repr=False)
    context_window: int = 0
    """In tokens; 0: the served model's, which the service is asked for."""
    is_chat_model: bool = True
    is_function_calling_model: bool = True
    should_use_structured_outputs: bool = True
    """vLLM holds the model to a schema as it generates."""

    def __init__(
        self,
        model: str = "",
        *,
        temperature: float = 0.0,
        api_base: str | None = None,
        api_key: str | None = None,
        **fields: Any,
    ) -> None:
        """`model`: empty is the one that the service serves. `fields`: those of `BlendFields` and of `OpenAILike`."""
        fields = {"timeout": TIMEOUT_S, "async_http_client": one_loops_client(), **fields}
        secret = key_or_none(api_key).get_secret_value()
        super().__init__(model=model, temperature=temperature, api_base=openai_url(api_base), api_key=secret, **fields)

    @classmethod
    def class_name(cls) -> str:
        return "KVBlendLLM"

    @property
    def metadata(self) -> LLMMetadata:
        if not self.context_window:
            self.context_window = self._served_context_window()
        return super().metadata

    def _served_context_window(self) -> int:
        served = {model.id: model for model in self._get_client().models.list().data}
        model = served.get(self.model) or next(iter(served.values()))
        return int((model.model_extra or {})["max_model_len"])

    def _get_model_kwargs(self, *, documents: Sequence[BaseNode | NodeWithScore] = (), **kwargs: Any) -> dict[str, Any]:
        fields = super()._get_model_kwargs(**kwargs)
        if fields.get("stream"):
            fields.setdefault("stream_options", {"include_usage": True})
        return with_blend(fields, self.blend_options(to_supplied(documents)))

    def _get_response_token_counts(self, raw_response: Any) -> dict[str, Any]:
        # what LlamaIndex makes a response's additional_kwargs of
        counts: dict[str, Any] = super()._get_response_token_counts(raw_response)
        field = blend_of(raw_response)
        return counts if field is None else {**counts, "kvblend": field}
