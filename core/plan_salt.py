"""The `cache_salt` of a blended request: one name for its plan and its question, wherever its KV goes.

A block of blended KV holds the tokens that a prompt says, and not the KV that a prefill of them gives. vLLM's prefix
cache, a decode node that gets the block from a prefill node, and a router that reads KV events all know blocks by their
tokens and `cache_salt`; with this one they never take a blended block for an exact one, nor one blend for another.
"""

import hashlib
from collections.abc import Sequence

from kvblend.core.plan import ContextPlan

__all__ = ["has_plan_salt", "is_salt_of", "plan_digest", "plan_salt"]

OWN_DIGITS = 32


def plan_digest(plan: ContextPlan, question_ids: Sequence[int]) -> bytes:
    """32 bytes that two blends of the same context tokens share where their KV is the same: the plan's, whose own salt
    enters it, and the question's, which chooses the tokens that are recomputed.

    `question_ids`: all of the prompt behind the plan's spans. What a plan does not say, as one of an older version does
    not, counts as its default.
    """
    said = plan.model_dump_json(exclude_defaults=True)
    return hashlib.sha256(f"kvblend 2 {said} {list(question_ids)}".encode()).digest()


def plan_salt(plan: ContextPlan, question_ids: Sequence[int], *, own: str | None = None) -> str:
    """The `cache_salt` of a request with this plan: 64 hex digits, and where the request has a salt of its `own`, which
    still sets it apart from others, a dot and 32 of that one's hash. vLLM takes 128 characters, and no `@`, `/`, `\\`.
    """
    digest = plan_digest(plan, question_ids).hex()
    return digest if own is None else f"{digest}.{hashlib.sha256(own.encode()).hexdigest()[:OWN_DIGITS]}"


def has_plan_salt(cache_salt: str | None, plan: ContextPlan, question_ids: Sequence[int]) -> bool:
    """Whether a request's `cache_salt` is one that `plan_salt` makes of its plan and question."""
    return is_salt_of(cache_salt, plan_digest(plan, question_ids))


def is_salt_of(cache_salt: str | None, digest: bytes) -> bool:
    """Whether a request's `cache_salt` is one that `plan_salt` makes of the plan with this `plan_digest`."""
    return cache_salt is not None and cache_salt.partition(".")[0] == digest.hex()
