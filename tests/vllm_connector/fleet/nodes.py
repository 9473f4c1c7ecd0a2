"""Real vLLM servers with several connectors each, and what they are asked."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import httpx

from kvblend.api.engine.control import ControlClient
from kvblend.cli.engine import CONNECTOR, engine_command, engine_environment, free_port
from kvblend.cli.server_process import ServerProcess
from kvblend.core.identity import token_hash
from kvblend.core.order_fields import with_order
from kvblend.core.plan import ContextPlan, EncodeOrder, KVBlendParams, Span
from kvblend.core.report import BlendReport
from kvblend.eval.questions.question_set import load_questions

__all__ = [
    "BLOCK", "PATH", "Node", "Prompts", "answer", "ask", "blend", "distance", "encode", "kvblend", "multi", "nixl",
    "report_in", "store",
]  # fmt: skip

Told = TypeVar("Told")
PATH = "/v1/completions"
BLOCK = 32
MAX_MODEL_LEN = 1024
ANSWER_TOKENS = 12
START_TIMEOUT_S = 600.0
PREAMBLE, WARM, PASSAGES, QUESTION = 33, 43, (90, 95, 98, 100), 14
"""The preamble fills a block of 32, and the context 13: a blend that is found again in the prefix cache is whole."""


def kvblend() -> dict[str, Any]:
    return dict(CONNECTOR)


def nixl(role: str) -> dict[str, Any]:
    extra = {"kv_lease_duration": 600}  # a decode node on a busy machine is late
    return {
        "kv_connector": "NixlConnector", "kv_role": role, "kv_buffer_device": "cpu", "kv_connector_extra_config": extra,
    }  # fmt: skip


def multi(*connectors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": connectors},
    }


@dataclass
class Node:
    """A vLLM server with `connectors` on the demo model. All nodes of a `folder` share its store; each has a control
    channel of its own, where it has kvblend's connector."""

    name: str
    folder: Path
    model: Path
    dtype: str
    connectors: Mapping[str, Any]
    extra: Sequence[str] = ()
    modules: Path | None = None
    """A folder of modules that it imports."""
    port: int = field(default_factory=free_port)
    process: ServerProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def control(self) -> str:
        return f"ipc://{self.folder}/{self.name}.sock"

    @property
    def tiers(self) -> dict[str, Any]:
        return {"home": self.folder, "cpu_bytes": 0, "disk_path": self.folder / "disk", "disk_bytes": 1 << 29}

    def start(self, closing: ExitStack) -> None:
        """Begin to start it; `closing` ends it."""
        has_kvblend = "KVBlendConnector" in json.dumps(self.connectors)
        config = {**self.connectors, "kv_load_failure_policy": "recompute"}
        extra = ["--kv-transfer-config", json.dumps(config), "--block-size", str(BLOCK), "--enforce-eager"]
        extra += ["--max-num-seqs", "8", "--scheduling-policy", "priority"]
        extra += ["--logits-processors", "kvblend.eval.bench.forced_answer:ForcedAnswer"]
        extra += ["--load-format", "kvblend"] if has_kvblend else []
        own = {f"KVBLEND_{name.upper()}": str(value) for name, value in self.tiers.items()}
        environment = {
            **engine_environment(control=self.control),
            **own,
            "KVBLEND_CODEC": "raw",
            "KVBLEND_LOADING": "always",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(self.modules or "")))),
            "UCX_TLS": "tcp",  # as between hosts: who is killed is found dead
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
        }
        command = engine_command(
            str(self.model), port=self.port, dtype=self.dtype, max_model_len=MAX_MODEL_LEN, blends=False,
            extra=[*extra, *self.extra],
        )  # fmt: skip
        log_path, health_url = self.folder / f"{self.name}.log", f"{self.url}/health"
        process = ServerProcess(self.name, command, environment=environment, log_path=log_path, health_url=health_url)
        process.start()
        closing.callback(process.stop)
        self.process = process

    def wait_ready(self) -> None:
        assert self.process is not None
        self.process.wait_ready(timeout_s=START_TIMEOUT_S)

    def kill(self) -> None:
        """End all of its processes at once, as a host that fails does."""
        assert self.process is not None and self.process.pid is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stop()

    @property
    def log(self) -> str:
        """What it has said."""
        assert self.process is not None
        return self.process.log_path.read_text(errors="replace")

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", trust_env=False).text

    @property
    def handed_on(self) -> float:
        """Tokens whose KV it has taken over from other nodes."""
        (count,) = re.findall(r"^vllm:external_prefix_cache_hits_total\{.*\} (\S+)$", self.metrics(), re.MULTILINE)
        return float(count)

    def told(self, ask: Callable[[ControlClient], Coroutine[Any, Any, Told]]) -> Told:
        """What its control channel answers."""

        async def asked() -> Told:
            channel = ControlClient(self.control)
            try:
                return await ask(channel)
            finally:
                await channel.close()

        return asyncio.run(asked())


def ask(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a server, or of a proxy."""
    response = httpx.post(f"{url}{PATH}", json=body, timeout=300, trust_env=False)
    assert response.status_code == 200, response.text
    said: dict[str, Any] = response.json()
    return said


class Prompts:
    """Prompts of the same passages with other questions: a running text, cut up. The passages' KV is made behind
    another context than they stand behind, so that a blend in which nothing is recomputed differs from full prefill."""

    def __init__(self, tokenizer: Any) -> None:
        texts = dict.fromkeys(text for question in load_questions(None) for text in question.passages)
        pieces = iter(tokenizer("\n\n".join(texts), add_special_tokens=False).input_ids)

        def tokens(count: int) -> list[int]:
            return [next(pieces) for _ in range(count)]

        self.preamble, warm = tokens(PREAMBLE), tokens(WARM)
        self.passages = [tokens(count) for count in PASSAGES]
        self.encode_context = self.preamble + warm
        self._rest = pieces

    def question(self) -> list[int]:
        """One that was not asked before."""
        return [next(self._rest) for _ in range(QUESTION)]

    def prompt(self, question: Sequence[int]) -> list[int]:
        return [*self.over(range(len(self.passages)))[0], *question]

    def encodes(self) -> list[tuple[list[int], KVBlendParams]]:
        runs = [(self.preamble, (0, PREAMBLE))]
        start = len(self.encode_context)
        runs += [(self.encode_context + passage, (start, start + len(passage))) for passage in self.passages]
        return [
            (tokens, KVBlendParams(report_id=token_hash(tokens), encode=EncodeOrder(spans=(span,))))
            for tokens, span in runs
        ]

    @property
    def plan(self) -> ContextPlan:
        return self.over(range(len(self.passages)))[1]

    def over(self, places: Sequence[int]) -> tuple[list[int], ContextPlan]:
        """The tokens of a context of these passages, and its plan."""
        context, passages = token_hash(self.encode_context), [self.passages[place] for place in places]
        spans = [Span(kind="exact", num_tokens=PREAMBLE)]
        spans += [Span(kind="passage", num_tokens=len(own), encode_contexts=(context,)) for own in passages]
        tokens = [*self.preamble, *(token for passage in passages for token in passage)]
        return tokens, ContextPlan(spans=tuple(spans), recompute_ratio=0.0)


def answer(prompt: Sequence[int], forced: Sequence[int] | None = None, **fields: Any) -> dict[str, Any]:
    """The body of a greedy completion, or of one that says just the tokens `forced`, with their log-probabilities."""
    xargs = {"forced_answer": list(forced)} if forced else {}
    length = len(forced) if forced else ANSWER_TOKENS
    return {
        "prompt": list(prompt), "max_tokens": length, "temperature": 0.0, "ignore_eos": True, "logprobs": 0,
        "return_token_ids": True, "vllm_xargs": xargs, **fields,
    }  # fmt: skip


def blend(
    body: Mapping[str, Any], plan: ContextPlan, report_id: str, *, salted: bool = True, proxied: bool = True
) -> dict[str, Any]:
    order = KVBlendParams(report_id=report_id, blend=plan)
    return with_order(body, order, body["prompt"], salted=salted, proxied=proxied)


def encode(tokens: Sequence[int], order: KVBlendParams) -> dict[str, Any]:
    return with_order(answer(tokens, max_tokens=1), order, tokens, proxied=True)


def store(node: Node, prompts: Prompts, send: Callable[[list[int], KVBlendParams], object]) -> None:
    """Have all passages encoded, and wait until the node's files are committed."""
    for tokens, order in prompts.encodes():
        send(tokens, order)
        assert order.report_id is not None
        reply = node.told(partial(ControlClient.encoded, report_id=order.report_id, wait_s=30.0))
        assert reply is not None and reply.encoded, reply


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How far two answers of the same tokens are, in the mean of their log-probabilities' differences."""
    (first,), (second,) = one["choices"], other["choices"]
    assert first["token_ids"] == second["token_ids"]
    pairs = zip(first["logprobs"]["token_logprobs"], second["logprobs"]["token_logprobs"], strict=True)
    return fmean(abs(a - b) for a, b in pairs)


def report_in(said: Mapping[str, Any]) -> BlendReport | None:
    """The report that came with an answer."""
    given = (said.get("kv_transfer_params") or {}).get("kvblend_report")
    return None if given is None else BlendReport.model_validate(given)
