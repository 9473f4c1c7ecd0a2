"""Plain OpenAI requests whose prompts hold ingested passages, pasted in by whoever wrote them, are blended too.

    [text][part of a passage][text][passage]...[text]
     exact                    fresh              the question

The request goes to vLLM as it came, with a plan beside it. vLLM makes its tokens by the model's template; what is made
here of the same fields are the same tokens, or the plan names nothing that is stored and the prompt is prefilled.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from kvblend.api.collections import Collections
from kvblend.api.engine.answer_route import CHAT, COMPLETIONS, AnswerRoute
from kvblend.api.engine.blend_order import BlendOrder
from kvblend.api.open_collection import OpenCollection
from kvblend.api.prompt.blend_prompt import BlendPrompt, DocumentRef, PromptPassage
from kvblend.api.prompt.builder import Frame, PromptBuilder
from kvblend.api.prompt.sent_messages import sent_messages
from kvblend.api.prompt.template_options import template_options
from kvblend.api.query_threads import QueryThreads
from kvblend.api.request_context import step
from kvblend.core.calibration import EncodeKind
from kvblend.core.collection_name import DEFAULT_TENANT
from kvblend.core.errors import ConflictError, InvalidRequestError, NotFoundError
from kvblend.core.plan import MAX_ENCODE_CONTEXTS
from kvblend.core.rest import BlendChoices, Source
from kvblend.retriever import PassageMatcher, TokenMatch

__all__ = ["DropIn"]


class DropIn:
    """Finds passages in the prompts of requests that name none. `is_on`: else it finds nothing, and keeps no index."""

    def __init__(
        self,
        matcher: PassageMatcher,
        collections: Collections,
        prompts: PromptBuilder,
        threads: QueryThreads,
        *,
        is_on: bool,
    ) -> None:
        self._matcher, self._collections, self._prompts, self._is_on = matcher, collections, prompts, is_on
        self._threads = threads
        self._catching_up: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take up the catalog's passages in the background; until it has, some are not found."""
        if self._is_on:
            self._catch_up()

    async def close(self) -> None:
        self._matcher.close()
        if self._catching_up is not None:
            await self._catching_up

    async def match(
        self,
        route: AnswerRoute,
        fields: Mapping[str, Any],
        choices: BlendChoices | None = None,
        *,
        tenant: str = DEFAULT_TENANT,
    ) -> BlendOrder | None:
        """The order for a request to vLLM's `route` with `fields` as its body; None where it holds no passage.

        `fields` may be anything that a client sends: what no prompt can be made of is left to vLLM. Only the
        tenant's collections are looked in.
        """
        choices = choices or BlendChoices()
        if not self._is_on or choices.reuse != "blend":
            return None
        with step("kvblend.retrieve"):
            order = await self._threads.run(self._match, route, fields, choices, tenant)
        if self._matcher.is_behind:
            self._catch_up()
        return order

    def _catch_up(self) -> None:
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(
                asyncio.to_thread(self._matcher.catch_up), name="kvblend passages to match"
            )

    def _match(
        self, route: AnswerRoute, fields: Mapping[str, Any], choices: BlendChoices, tenant: str
    ) -> BlendOrder | None:
        if self._matcher.is_empty:
            return None
        token_ids = self._token_ids(route, fields)
        matches = self._matcher.match(token_ids, tenant)
        opened = {name: self._open(name) for match in matches for name in match.collections}
        usable = [match for match in matches if any(opened[name] is not None for name in match.collections)]
        if not usable:
            return None
        passages, sources, end = list[PromptPassage](), list[Source](), 0
        for match in usable:
            lead_ids = token_ids[end : match.start] if passages else ()
            end = min(match.start + match.num_tokens, len(token_ids) - 1)  # something must be left to be asked
            passages.append(_passage(match, end - match.start, lead_ids, opened))
            sources.append(_source(match, opened, len(sources)))
        # whoever wrote it: the text in front is not kept, vLLM's own prefix cache has it
        frame = Frame(token_ids[: usable[0].start], token_ids[end:], recurs=False)
        return BlendOrder(
            BlendPrompt(frame, passages, self._collections.salts.of(tenant)),
            choices,
            fields,
            route=route,
            as_sent=True,
            sources=sources,
        )

    def _token_ids(self, route: AnswerRoute, fields: Mapping[str, Any]) -> tuple[int, ...]:
        """What vLLM makes of the prompt; none where it is none that can be blended."""
        prompt, messages = fields.get("prompt"), fields.get("messages")
        if route is COMPLETIONS and isinstance(prompt, str):
            return self._prompts.prompt_ids(prompt)
        if route is COMPLETIONS and isinstance(prompt, list) and all(type(each) is int for each in prompt):
            return tuple(prompt) if all(0 <= each < 1 << 31 for each in prompt) else ()
        plain = sent_messages(messages) if route is CHAT else None
        told = fields.get("chat_template_kwargs") or {}
        if plain is None or fields.get("chat_template") is not None or not isinstance(told, dict):
            return ()
        with suppress(InvalidRequestError):  # vLLM says it in its own words
            return self._prompts.chat_ids(plain, template_options(fields))
        return ()

    def _open(self, name: str) -> OpenCollection | None:
        """A collection, if its passages are the served model's tokens and it is still there."""
        with suppress(NotFoundError, ConflictError):
            return self._collections.open(name)
        return None


Opened = Mapping[str, OpenCollection | None]


def _passage(match: TokenMatch, num_tokens: int, lead_ids: tuple[int, ...], opened: Opened) -> PromptPassage:
    """With what it was encoded behind, in whatever collections hold it; nothing of that stands here."""
    kinds: dict[str, EncodeKind] = {}
    source: DocumentRef | None = None
    owner: str | None = None
    for holder in match.holders:
        collection = opened[holder.collection]
        if collection is None:
            continue
        for context in collection.contexts(holder.found.contexts):
            kinds.setdefault(context, collection.kind(context))
        if source is None:
            source, owner = DocumentRef(holder.collection, holder.found.document.id), collection.owner
    assert source is not None, "only a match that can be used comes here"
    chosen = dict(islice(kinds.items(), MAX_ENCODE_CONTEXTS))
    token_ids = match.passage.token_ids
    return PromptPassage(
        token_ids,
        tuple(chosen),
        tuple(chosen.values()),
        source,
        owner,
        num_cut=(match.skipped, len(token_ids) - match.skipped - num_tokens),
        lead_ids=lead_ids,
    )


def _source(match: TokenMatch, opened: Opened, place: int) -> Source:
    holder = next(holder for holder in match.holders if opened[holder.collection] is not None)
    document = holder.found.document
    return Source(
        document_id=document.id,
        document_name=document.name,
        passage_id=match.passage.passage_id,
        text=match.passage.text,
        metadata=document.metadata,
        place=place,
    )
