"""One encode order's way: to a vLLM server, and until every file of it is where it must last."""

import time
import uuid
from collections.abc import Collection
from typing import Any

from kvblend.api.engine.priority import post_behind_answers
from kvblend.api.engine.replicas import EngineFacts, Replica
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.passage_kv import KVName, PassageKV
from kvblend.core.control import EngineInfo
from kvblend.core.order_fields import with_order
from kvblend.core.plan import MAX_ENCODE_SPANS, EncodeOrder, KVBlendParams

__all__ = ["COMMIT_WAIT_S", "send_encode"]

COMMIT_WAIT_S = 60.0
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0


async def send_encode(
    replica: Replica,
    facts: EngineFacts,
    passage_kv: PassageKV,
    run: EncodeRun,
    names: Collection[KVName],
    *,
    owner: str | None,
    priority: int,
) -> dict[KVName, str]:
    """Let a server compute the KV of those passages of a run that `names` names, and wait until they are committed.

    Returns why some were not, by name. What lies behind the model's length is not; the passages before it are. Raises
    KVBlendError where the server refuses the request, EngineUnavailableError where it is gone.
    """
    assert facts.info is not None
    failures, spans, sent = dict[KVName, str](), list[tuple[int, int]](), list[KVName]()
    for name, start, end in run.parts:
        if name not in names:
            continue
        if end >= facts.max_model_len:
            failures[name] = f"it takes {end + 1} tokens behind its encode context, the model {facts.max_model_len}"
        elif len(spans) == MAX_ENCODE_SPANS:
            failures[name] = f"it is beyond the {MAX_ENCODE_SPANS} passages of one request"
        else:
            spans.append((start, end))
            sent.append(name)
    if not spans:
        return failures
    report_id = uuid.uuid4().hex
    owners = () if owner is None else (owner,)
    order = KVBlendParams(
        report_id=report_id, encode=EncodeOrder(spans=tuple(spans), owners=owners, salt=run.context.salt)
    )
    body: dict[str, Any] = {
        "model": facts.model,
        "prompt": run.prompt(spans[-1][1]),
        "max_tokens": 1,
        "temperature": 0.0,
        **({} if run.context.salt is None else {"cache_salt": run.context.salt}),
    }
    body = with_order(body, order, body["prompt"], proxied=facts.info.proxied)
    with replica.request():
        await post_behind_answers(replica, "/v1/completions", body, priority=priority)
    problem = await _committed(replica, facts.info, passage_kv, sent, report_id)
    if problem is not None:
        left = await passage_kv.uncommitted(facts.info, sent)
        failures |= dict.fromkeys(left, problem)
    return failures


async def _committed(
    replica: Replica, info: EngineInfo, passage_kv: PassageKV, names: list[KVName], report_id: str
) -> str | None:
    """Wait until every rank's files are where they must last, after the response; what went wrong, or None.

    The store itself is asked, and the control channel for a failure.
    """
    wait_s, deadline = FIRST_WAIT_S, time.monotonic() + COMMIT_WAIT_S
    while await passage_kv.uncommitted(info, names):
        if time.monotonic() > deadline:
            return f"it was not committed within {COMMIT_WAIT_S:.0f} s"
        reply = await replica.control.encoded(report_id, wait_s=wait_s)
        if reply is None:
            return "the control channel fell silent"
        if reply.encoded is False:
            return reply.error or "the engine does not say why"
        if reply.encoded and await passage_kv.uncommitted(info, names):
            return "the engine says that it is stored, but it is in no tier of this service's store"
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
    return None
