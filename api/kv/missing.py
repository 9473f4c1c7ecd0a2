"""What a blend of a prompt wants and the store lacks, and how it is made."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvblend.api.collections import Collections
from kvblend.api.kv.encode_context import EncodeContext
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.encoder import Encoder
from kvblend.api.kv.passage_kv import KVName, PassageKV
from kvblend.api.prompt.blend_prompt import BlendPrompt, DocumentRef, PromptPassage
from kvblend.core.calibration import EncodeKind
from kvblend.core.control import EngineInfo

__all__ = ["MissingKV", "encode_missing", "find_missing"]


@dataclass(frozen=True)
class MissingKV:
    """Passages of which nothing is stored that would do, and the preamble, if its own KV is not.

    `reused`: tokens of the passages that are stored, by what the best of it was encoded behind.
    """

    passages: tuple[PromptPassage, ...] = ()
    reused: Mapping[EncodeKind, int] = field(default_factory=dict)
    preamble: EncodeRun | None = None
    owner: str | None = None
    """Of the preamble."""


async def find_missing(prompt: BlendPrompt, passage_kv: PassageKV, info: EngineInfo) -> MissingKV:
    """Ask the store for all of a prompt's KV at once."""
    preamble_ids = prompt.frame.preamble_ids
    preamble = EncodeRun.alone(EncodeContext((), 0, prompt.salt), preamble_ids) if preamble_ids else None
    names = {name for passage in prompt.passages for name in passage.names}
    if preamble:
        names.update(preamble.names)
    missing = set(await passage_kv.missing(info, sorted(names)))
    absent, reused = [], Counter[EncodeKind]()
    for passage in prompt.passages:
        stored = [kind for name, kind in zip(passage.names, passage.kinds, strict=True) if name not in missing]
        if stored:
            reused[stored[0]] += len(passage.prompt_ids)
        else:
            absent.append(passage)
    return MissingKV(
        tuple(absent),
        reused,
        preamble if preamble and missing.issuperset(preamble.names) else None,
        prompt.owner,
    )


async def encode_missing(missing: MissingKV, collections: Collections, encoder: Encoder, *, preamble: bool) -> None:
    """Have it made in the background; what belongs to a document that is gone meanwhile is left.

    `preamble`: whether its KV is worth keeping.
    """
    if preamble and missing.preamble:
        encoder.encode_soon(missing.preamble, only=missing.preamble.names, owner=missing.owner)
    for passage in missing.passages:
        if isinstance(passage.source, EncodeRun):
            encoder.encode_soon(passage.source, only=passage.source.names, owner=passage.owner)
    waiting = [passage for passage in missing.passages if any(map(encoder.is_encoding, passage.names))]
    for passage in waiting:
        encoder.hurry(passage.names)
    for (ref, owner), names in _by_document([each for each in missing.passages if each not in waiting]).items():
        for run in await asyncio.to_thread(collections.document_runs, ref.collection, ref.document_id):
            wanted = names.intersection(run.names)
            if wanted:
                encoder.encode_soon(run, only=wanted, owner=owner)


def _by_document(passages: Sequence[PromptPassage]) -> dict[tuple[DocumentRef, str | None], set[KVName]]:
    found: dict[tuple[DocumentRef, str | None], set[KVName]] = {}
    for passage in passages:
        if isinstance(passage.source, DocumentRef):
            found.setdefault((passage.source, passage.owner), set()).update(passage.names)
    return found
