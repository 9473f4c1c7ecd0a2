"""vLLM's own CPU offload of prefixes and kvblend's passages in one real server: neither has the other's KV, both count.

The cache of blocks is so small that three prompts drive out what came before.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.vllm_connector.fleet.nodes import (
    BLOCK,
    Node,
    Prompts,
    answer,
    ask,
    blend,
    distance,
    encode,
    kvblend,
    multi,
    report_in,
    store,
)

pytestmark = pytest.mark.extended

IN_SERVER = Path(__file__).with_name("in_server")
NUM_BLOCKS = 40
CONTROL = 5
"""How many times farther from full prefill a blend is than two answers that are to be the same."""
LOADED, STORED = "kv_offload_load_bytes_total", "kv_offload_store_bytes_total"


@dataclass
class Server:
    node: Node
    prompts: Prompts
    stored_by_encodes: float = 0.0

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        return ask(self.node.url, body)

    def count(self, name: str) -> float:
        """A counter of vLLM's, over all of its labels."""
        lines = re.findall(rf"^vllm:{name}(?:\{{.*\}})? (\S+)$", self.node.metrics(), re.MULTILINE)
        return sum(map(float, lines))

    def forget(self) -> None:
        """Drive all blocks out of vLLM's own prefix cache."""
        for _ in range(3):
            self.ask(answer(self.prompts.prompt(self.prompts.question()), cache_salt=uuid.uuid4().hex))


@pytest.fixture(scope="module")
def server(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str) -> Iterator[Server]:
    offloading = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": 1 << 29,
            "spec_name": "HostOffloadingSpec",
            "spec_module_path": "host_offloading",
        },
    }
    folder = tmp_path_factory.mktemp("offloading")
    extra = ["--num-gpu-blocks-override", str(NUM_BLOCKS)]
    connectors = multi(kvblend(), offloading)
    node = Node("offloading", folder, demo_model_path, dtype, connectors, extra=extra, modules=IN_SERVER)
    with ExitStack() as closing:
        node.start(closing)
        node.wait_ready()
        made = Server(node, Prompts(AutoTokenizer.from_pretrained(demo_model_path)))
        store(node, made.prompts, lambda tokens, order: made.ask(encode(tokens, order)))
        made.stored_by_encodes = made.count(STORED)
        yield made


@pytest.fixture
def case(server: Server) -> tuple[list[int], dict[str, Any]]:
    """A prompt, and full prefill's answer to it, of which nothing is found again."""
    prompt = server.prompts.prompt(server.prompts.question())
    return prompt, server.ask(answer(prompt, cache_salt=uuid.uuid4().hex))


def test_a_prefix_comes_back_from_the_offload_and_a_blend_does_not_touch_it(
    server: Server, case: tuple[list[int], dict[str, Any]]
) -> None:
    """Reference: full prefill. Ours: a plain request, in front of a blend of the same prompt and behind it."""
    prompt, full = case
    plain = answer(prompt, full["choices"][0]["token_ids"])
    blended = None
    for _ in range(2):
        server.ask(plain)
        server.forget()
        loaded = server.count(LOADED)
        again = server.ask(plain)
        assert server.count(LOADED) > loaded
        server.forget()
        blended = server.ask(blend(plain, server.prompts.plan, uuid.uuid4().hex, salted=False, proxied=False))
        report = report_in(blended)
        assert report is not None and report.outcome == "blended" and report.reused_tokens > 300
        assert distance(again, full) * CONTROL < distance(blended, full)
        server.forget()
    assert blended is not None and distance(server.ask(plain), full) * CONTROL < distance(blended, full)


def test_a_blend_is_found_again_by_its_own_plan_alone(server: Server, case: tuple[list[int], dict[str, Any]]) -> None:
    """In vLLM's prefix cache, and after that was driven out."""
    prompt, full = case
    server.forget()  # what plain requests left there is exact, and taken in place of a blend
    plain = answer(prompt, full["choices"][0]["token_ids"])
    order = blend(plain, server.prompts.plan, uuid.uuid4().hex, salted=False, proxied=False)
    first, second = server.ask(order), server.ask(order)
    server.forget()
    third = server.ask(order)
    for said in (second, third):
        assert distance(said, first) * CONTROL < distance(said, full)
    outcomes = [report.outcome for said in (first, second) if (report := report_in(said))]
    assert outcomes == ["blended", "prefix_hit"]


def test_of_what_is_encoded_only_the_beginning_is_offloaded(
    server: Server, case: tuple[list[int], dict[str, Any]]
) -> None:
    """A passage's blocks have hashes that no other request has, and would drive out what others ask for."""
    prompt, _ = case
    before = server.count(STORED)
    server.ask(answer(prompt, cache_salt=uuid.uuid4().hex))
    block = (server.count(STORED) - before) / (len(prompt) // BLOCK)
    assert block > 0 and server.stored_by_encodes / block <= len(server.prompts.encode_context) // BLOCK


def test_both_tell_their_counts(server: Server, case: tuple[list[int], dict[str, Any]]) -> None:
    """On one page of metrics, and in vLLM's log, where it adds up what its processes say."""
    prompt, _ = case
    server.ask(blend(answer(prompt), server.prompts.plan, uuid.uuid4().hex, salted=False, proxied=False))
    assert server.count("kvblend_tier_keys_total") > 0 and server.count(STORED) > 0
    assert "the engine goes on without it" not in server.node.log
