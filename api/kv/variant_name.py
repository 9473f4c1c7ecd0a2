"""What a variant goes by in the store, and how it is encoded."""

from collections.abc import Mapping

from kvblend.api.kv.encode_context import EncodeContext
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.passage_kv import KVName
from kvblend.api.prompt.neighbours import PassageVariant
from kvblend.core.identity import token_hash

__all__ = ["variant_context", "variant_name", "variant_run"]

Tokens = tuple[int, ...]


def variant_context(before: str, context: EncodeContext, token_ids: Mapping[str, Tokens]) -> str:
    """The encode context that is a collection's preamble and a passage, or that alone where `before` is empty."""
    return token_hash((*context.preamble_ids, *(token_ids[before] if before else ())), salt=context.salt)


def variant_name(variant: PassageVariant, context: EncodeContext, token_ids: Mapping[str, Tokens]) -> KVName:
    """A variant's encode context is the preamble and the passage in front; `token_ids` has passages' by id."""
    return variant_context(variant.before, context, token_ids), variant.passage


def variant_run(variant: PassageVariant, context: EncodeContext, token_ids: Mapping[str, Tokens]) -> EncodeRun:
    """The pass that makes a variant, and of a pair that of the first passage behind the preamble too."""
    passages = tuple(token_ids[passage] for passage in variant.passages)
    return EncodeRun(EncodeContext(context.preamble_ids, context.num_preamble, context.salt), passages)
