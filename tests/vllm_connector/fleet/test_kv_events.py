"""What a router knows that reads a real vLLM server's KV events: blended blocks by their plan's salt, and never as
those of a plain prompt."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from transformers import AutoTokenizer
from vllm.distributed.kv_events import BlockStored, KVEventBatch

from kvblend.api.engine.control import ControlClient
from kvblend.cli.engine import free_port
from kvblend.core.plan import ContextPlan
from tests.vllm_connector.fleet.nodes import BLOCK, Node, Prompts, answer, ask, blend, encode, kvblend, report_in, store

pytestmark = pytest.mark.extended

WAIT_MS = 120_000


@dataclass
class Router:
    """Knows a block by its tokens, its extra keys and the block in front of it, as events name them."""

    events: zmq.Socket[bytes]
    decoder: msgspec.msgpack.Decoder[KVEventBatch] = field(
        default_factory=lambda: msgspec.msgpack.Decoder(KVEventBatch)
    )
    names: dict[Any, Any] = field(default_factory=dict)

    def read(self, prompt: Sequence[int]) -> list[BlockStored]:
        """Take up events until the last full block of `prompt` is stored; those of its blocks."""
        blocks = [tuple(prompt[start : start + BLOCK]) for start in range(0, len(prompt) - BLOCK + 1, BLOCK)]
        told: list[BlockStored] = []
        last = None
        while last != blocks[-1]:
            assert self.events.poll(WAIT_MS), f"no event tells of the prompt's last block: {told}"
            for event in self.decoder.decode(self.events.recv_multipart()[-1]).events:
                assert isinstance(event, BlockStored), event
                name = self.names.get(event.parent_block_hash)
                for place, (block_hash, extra) in enumerate(zip(event.block_hashes, event.extra_keys, strict=True)):
                    last = tuple(event.token_ids[place * BLOCK : (place + 1) * BLOCK])
                    name = self.names[block_hash] = (name, last, extra)
                told.append(event)
        return told

    def credited(self, prompt: Sequence[int], salt: str | None = None) -> int:
        """Tokens from the prompt's beginning that it takes the server to hold."""
        held = set(self.names.values())
        name: Any = None
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            extra = None if salt is None or start else (salt,)
            name = (name, tuple(prompt[start : start + BLOCK]), extra)
            if name not in held:
                return start
        return len(prompt) // BLOCK * BLOCK


@dataclass
class Served:
    node: Node
    prompts: Prompts
    router: Router

    def blended(
        self, prompt: Sequence[int], plan: ContextPlan, *, salted: bool
    ) -> tuple[str | None, str, list[BlockStored]]:
        """The salt that a blend of the prompt was sent with, what became of it, and what the events said."""
        body = blend(answer(prompt), plan, uuid.uuid4().hex, salted=salted, proxied=False)
        report = report_in(ask(self.node.url, body))
        assert report is not None
        told = self.router.read(prompt) if report.outcome == "blended" else []
        return body.get("cache_salt"), report.outcome, told

    def plain(self, prompt: Sequence[int]) -> int:
        """Tokens that a plain request finds in vLLM's prefix cache."""
        said = ask(self.node.url, answer(prompt))
        return int((said["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)


@pytest.fixture(scope="module")
def served(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str) -> Iterator[Served]:
    port = free_port()
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{port}"}
    extra = ["--kv-events-config", json.dumps(events)]
    node = Node("events", tmp_path_factory.mktemp("events"), demo_model_path, dtype, kvblend(), extra=extra)
    with ExitStack() as closing:
        context = closing.enter_context(zmq.Context())
        socket = closing.enter_context(context.socket(zmq.SUB))
        socket.subscribe(b"")
        socket.connect(f"tcp://127.0.0.1:{port}")  # before the server is there: it misses nothing
        node.start(closing)
        node.wait_ready()
        made = Served(node, Prompts(AutoTokenizer.from_pretrained(demo_model_path)), Router(socket))
        info = node.told(ControlClient.info)
        assert info is not None and info.salted  # so the service sends the salt
        store(node, made.prompts, lambda tokens, order: ask(node.url, encode(tokens, order)))
        made.router.read(made.prompts.encodes()[-1][0])
        yield made


def test_a_blend_is_credited_by_its_plans_salt_alone(served: Served) -> None:
    """A router credits the same plan with all that vLLM holds, and a plain prompt with what it would find there."""
    context, plan = served.prompts.over((0, 1, 2, 3))
    prompt = context + served.prompts.question()
    salt, outcome, told = served.blended(prompt, plan, salted=True)
    assert outcome == "blended" and salt is not None
    first = next(event for event in told if event.token_ids[:BLOCK] == prompt[:BLOCK] and event.extra_keys[0])
    assert first.parent_block_hash is None and first.extra_keys[0] == (salt,)
    assert served.router.credited(prompt, salt) == len(prompt) // BLOCK * BLOCK
    assert served.router.credited(prompt) == served.plain(prompt) <= BLOCK  # the preamble's, which is exact
    served.router.read(prompt)
    assert served.router.credited(prompt) == served.plain(prompt) == len(prompt) // BLOCK * BLOCK
    assert served.blended(prompt, plan, salted=True)[1] == "prefix_hit"


def test_without_the_salt_a_plain_prompt_is_credited_with_what_it_does_not_find(served: Served) -> None:
    """The control, and what the docs say of requests that are sent without it."""
    context, plan = served.prompts.over((3, 2, 1, 0))
    prompt = context + served.prompts.question()
    salt, outcome, _ = served.blended(prompt, plan, salted=False)
    assert outcome == "blended" and salt is None
    assert served.router.credited(prompt) == len(prompt) // BLOCK * BLOCK
    assert served.plain(prompt) <= BLOCK


def test_what_is_encoded_is_credited_to_a_plain_prompt_of_its_tokens(served: Served) -> None:
    """A limit that the docs name: its blocks are set apart from the passage on, and events do not say so."""
    prompt, order = served.prompts.encodes()[1]
    assert order.encode is not None
    assert served.router.credited(prompt) == len(prompt) // BLOCK * BLOCK
    assert served.plain(prompt) == order.encode.start // BLOCK * BLOCK
