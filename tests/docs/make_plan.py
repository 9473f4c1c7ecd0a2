"""Makes docs/plan.md of the plan's and the report's schemas, with an example that is one: `make reference`."""

import inspect
import json
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

from pydantic import BaseModel

from kvblend.core.identity import token_hash
from kvblend.core.plan import ContextPlan, EncodeOrder, KVBlendParams, Span
from kvblend.core.report import BlendFlops, BlendReport, PassageReport, StepTimes, TokenReport
from tests.docs.schema_tables import default_of, type_of

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"

HEAD = """\
# The context plan

What a request says to the connector in a vLLM server of your own, and what comes back. The service writes all of this
by itself: you need it where you send requests to vLLM yourself ([how](how-to/own-vllm.md)). A request has its order in
`kv_transfer_params["kvblend"]`, beside `prompt` and the rest of the body, or as JSON text in `vllm_xargs["kvblend"]`,
which proxies let through ([prefill and decode](how-to/prefill-decode.md)). One that is malformed costs a warning in
vLLM's log and a plain prefill. This page is made of the code (`core/plan.py`, `core/report.py`) by `make reference`.

## A worked example

Token ids are made up and short: a preamble of 4 tokens, two passages of 6, and a question of 3. Real passages have a
few hundred tokens. Names are SHA-256 of token ids, each as 8 little-endian bytes (`kvblend.core.identity.token_hash`).
"""
PREAMBLE, QUESTION = [1, 11, 12, 13], [31, 32, 33]
FIRST, SECOND = [21, 22, 23, 24, 25, 26], [41, 42, 43, 44, 45, 46]


def reference() -> str:
    """Return docs/plan.md as it should be."""
    order = _fields(KVBlendParams, ContextPlan, Span, EncodeOrder)
    report = _fields(BlendReport, PassageReport, TokenReport, BlendFlops, StepTimes)
    return "\n".join([HEAD, *_example(), "## The order\n", *order, "## The report\n", *report])


def _example() -> Iterator[str]:
    ends = list(accumulate(map(len, (PREAMBLE, FIRST, SECOND)), initial=0))
    encode = EncodeOrder(spans=tuple(pairwise(ends)))
    yield "**Encode.** One pass over the preamble and both passages; the KV of each is kept.\n"
    yield _body(PREAMBLE + FIRST + SECOND, KVBlendParams(report_id="encode-1", encode=encode), max_tokens=1)
    yield "The passages' encode contexts are the hashes of all tokens in front of them:\n"
    behind = token_hash(PREAMBLE), token_hash(PREAMBLE + FIRST)
    yield f"| | tokens in front | encode context |\n|---|---|---|\n| first passage | `{PREAMBLE}` | `{behind[0]}` |"
    yield f"| second passage | `{PREAMBLE + FIRST}` | `{behind[1]}` |\n"
    yield (
        "**Blend.** The same passages in the other order, behind the same preamble, with a question. The plan names\n"
        "spans by kind and length; what is behind the last one is the question, which vLLM prefills.\n"
    )
    spans = (
        Span(kind="exact", num_tokens=len(PREAMBLE)),
        Span(kind="passage", num_tokens=len(SECOND), encode_contexts=(behind[1],)),
        Span(kind="passage", num_tokens=len(FIRST), encode_contexts=(behind[0],)),
    )
    blend = KVBlendParams(report_id="blend-1", blend=ContextPlan(spans=spans))
    yield _body(PREAMBLE + SECOND + FIRST + QUESTION, blend, max_tokens=64)
    yield (
        "The answer's own `kv_transfer_params` has the report under `kvblend_report`; of a streamed answer the\n"
        "control channel gives it, by `report_id`. `encode_contexts` may name several that would do, best first: the\n"
        "first that is stored is used.\n"
    )


def _body(prompt: list[int], params: KVBlendParams, *, max_tokens: int) -> str:
    order = params.model_dump(mode="json", exclude_defaults=True) | {"version": params.version}
    body = {"model": "MODEL", "prompt": prompt, "max_tokens": max_tokens, "kv_transfer_params": {"kvblend": order}}
    KVBlendParams.model_validate(json.loads(json.dumps(order)))
    shown = json.dumps(body, indent=2)
    # lists of numbers on one line each
    for numbers in (prompt, *(list(span) for span in (params.encode.spans if params.encode else ()))):
        for depth in range(20):
            indent = " " * depth
            inner = ",\n".join(f"{indent}  {number}" for number in numbers)
            shown = shown.replace(f"[\n{inner}\n{indent}]", json.dumps(numbers))
    return f"```json\n{shown}\n```\n"


def _fields(*models: type[BaseModel]) -> Iterator[str]:
    for model in models:
        schema = model.model_json_schema()
        yield f"### {model.__name__}\n\n{inspect.cleandoc(model.__doc__ or '')}\n"
        yield "| field | type | default |\n|---|---|---|"
        for name, field in schema["properties"].items():
            default = default_of(field, is_required=name in schema.get("required", ()))
            yield f"| `{name}` | {type_of(field)} | {default} |"
        yield ""


if __name__ == "__main__":
    PAGE.write_text(reference())
