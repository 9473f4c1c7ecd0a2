"""Prefill and decode on real vLLM servers over NIXL: what a prefill node blends, decode nodes answer from, and nobody
takes it for exact KV. Decode nodes are vLLM's own, or have kvblend's connector beside NIXL's.

Answers are compared by the log-probabilities of the same tokens, those of full prefill's answer.
"""

import importlib.util
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from kvblend.api import ServiceConfig
from kvblend.api.engine.control import ControlClient
from kvblend.core.plan import ContextPlan
from kvblend.core.report import BlendReport
from kvblend.core.rest import BlendOptions, QueryResponse
from kvblend.core.settings import Settings
from kvblend.sdk import Client
from tests.api.front import running
from tests.vllm_connector.fleet.nodes import (
    PATH,
    Node,
    Prompts,
    answer,
    ask,
    blend,
    distance,
    encode,
    kvblend,
    multi,
    nixl,
    report_in,
    store,
)
from tests.vllm_connector.fleet.proxy import Proxy, proxy

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="vLLM's NixlConnector needs nixl"),
]

CONTROL = 5
"""How many times farther from full prefill a blend is than two answers that are to be the same."""


@dataclass
class Fleet:
    """One prefill node, and a decode node of each kind with a proxy of its own."""

    prefill: Node
    decode: dict[str, Node]
    proxies: dict[str, Proxy]
    prompts: Prompts
    closing: ExitStack


@pytest.fixture(scope="module")
def fleet(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    prefill = Node("prefill", folder, demo_model_path, dtype, multi(nixl("kv_producer"), kvblend()))
    decode = {
        "plain": Node("plain", folder, demo_model_path, dtype, nixl("kv_consumer")),
        "multi": Node("multi", folder, demo_model_path, dtype, multi(nixl("kv_consumer"), kvblend())),
    }
    with ExitStack() as closing:
        for node in (prefill, *decode.values()):
            node.start(closing)
        for node in (prefill, *decode.values()):
            node.wait_ready()
        proxies = {name: closing.enter_context(proxy(prefill.url, node.url)) for name, node in decode.items()}
        prompts = Prompts(AutoTokenizer.from_pretrained(demo_model_path))
        made = Fleet(prefill, decode, proxies, prompts, closing)
        store(prefill, prompts, lambda tokens, order: ask(proxies["plain"].url, encode(tokens, order)))
        closing.callback(lambda: _show_logs(folder))
        yield made


def _show_logs(folder: Path) -> None:
    """For the report of a failed test."""
    for log in sorted(folder.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")


def reported(node: Node, report_id: str) -> BlendReport | None:
    return node.told(partial(ControlClient.report, report_id=report_id, wait_s=10.0))


@dataclass
class Case:
    """One question to the fleet, by way of a decode node: what full prefill says, and what is asked."""

    fleet: Fleet
    prompt: list[int]
    full: dict[str, Any]
    report_id: str
    plan: ContextPlan

    @property
    def tokens(self) -> list[int]:
        tokens: list[int] = self.full["choices"][0]["token_ids"]
        return tokens

    @property
    def plain(self) -> dict[str, Any]:
        return answer(self.prompt, self.tokens)

    @property
    def blended(self) -> dict[str, Any]:
        return blend(self.plain, self.plan, self.report_id)

    def assert_blended(self, said: dict[str, Any]) -> None:
        """Reference: the prefill node's own answer from its own blend. Ours: what a decode node said."""
        own = ask(self.fleet.prefill.url, self.blended)
        report = report_in(own)
        assert report is not None and report.outcome == "prefix_hit", "the KV that was handed on lies there still"
        assert distance(said, own) * CONTROL < distance(said, self.full)

    def assert_exact(self, said: dict[str, Any], blended: dict[str, Any]) -> None:
        """Reference: full prefill. Ours: a plain request after a blended one."""
        assert distance(said, self.full) * CONTROL < distance(blended, self.full)


@pytest.fixture
def case(fleet: Fleet) -> Case:
    prompt = fleet.prompts.prompt(fleet.prompts.question())
    full = ask(fleet.prefill.url, answer(prompt, cache_salt=uuid.uuid4().hex))
    return Case(fleet, prompt, full, uuid.uuid4().hex, fleet.prompts.plan)


kinds = pytest.mark.parametrize("kind", ["plain", "multi"])


def test_a_service_is_told_what_a_request_needs(fleet: Fleet) -> None:
    for node in (fleet.prefill, fleet.decode["multi"]):
        info = node.told(ControlClient.info)
        assert info is not None and info.salted and info.proxied


@kinds
def test_plain(fleet: Fleet, case: Case, kind: str) -> None:
    """A request without an order: NIXL's alone."""
    said = ask(fleet.proxies[kind].url, case.plain)
    blended = ask(fleet.prefill.url, case.blended)
    case.assert_exact(said, blended)
    assert report_in(said) is None


@kinds
def test_blended(fleet: Fleet, case: Case, kind: str) -> None:
    said = ask(fleet.proxies[kind].url, case.blended)
    report = reported(fleet.prefill, case.report_id)
    assert report is not None and report.outcome == "blended" and report.missed_passages == 0
    case.assert_blended(said)
    if kind == "multi":  # it hands on what the prefill node reported, in its answer and over its own control channel
        assert report_in(said) == report == reported(fleet.decode["multi"], case.report_id)
    for url in (fleet.proxies[kind].url, fleet.decode[kind].url, fleet.prefill.url):
        case.assert_exact(ask(url, case.plain), said)


@kinds
def test_decode_node_holds_the_exact_prefix(fleet: Fleet, case: Case, kind: str) -> None:
    """It takes the prefill node's blend whole, and keeps both apart."""
    exact = ask(fleet.decode[kind].url, case.plain)
    said = ask(fleet.proxies[kind].url, case.blended)
    case.assert_exact(exact, said)
    case.assert_blended(said)
    case.assert_exact(ask(fleet.decode[kind].url, case.plain), said)


@kinds
def test_a_plan_without_its_salt_is_refused(fleet: Fleet, case: Case, kind: str) -> None:
    """The decode node, which cannot tell, would take its KV for exact."""
    said = ask(fleet.proxies[kind].url, blend(case.plain, fleet.prompts.plan, case.report_id, salted=False))
    report = reported(fleet.prefill, case.report_id)
    assert report is not None and report.outcome == "prefilled" and "cache_salt" in (report.reason or "")
    blended = ask(fleet.prefill.url, case.blended)
    case.assert_exact(said, blended)
    case.assert_exact(ask(fleet.decode[kind].url, case.plain), blended)


@kinds
def test_a_service_in_front(
    fleet: Fleet, demo_model_path: Path, embedding_model_path: Path, tmp_path: Path, kind: str
) -> None:
    """It ingests and asks by way of the proxy: the prefill node encodes and blends, and the decode node takes that KV
    for its answer. Reports come over the prefill node's control channel."""
    config = ServiceConfig(
        model=str(demo_model_path),
        embedding_model=embedding_model_path,
        engines=[(fleet.proxies[kind].url, fleet.prefill.control)],
        settings=Settings(**{**fleet.prefill.tiers, "home": tmp_path}, cost_model=False),
    )
    numbers = iter(range(0 if kind == "plain" else 20, 40))  # each asks what the other has not: that would be a prefix
    text = " ".join(f"Boat {number} pays {number * 7} crowns at the harbour of Marstrand." for number in range(40))
    with running(config) as url, Client(url) as client:
        client.create_collection("harbour", passage_tokens=64)
        assert client.wait(client.add_document("harbour", text, id="dues")).status == "succeeded"

        fields: dict[str, Any] = {"top_k": 4, "max_tokens": 4, "recompute_ratio": 0.2}

        def query(question: str) -> BlendReport:
            return client.query("harbour", question, **fields).report

        def streamed(question: str) -> BlendReport:
            *_, last = client.stream_query("harbour", question, **fields)
            assert isinstance(last, QueryResponse)
            return last.report

        def chat(question: str) -> BlendReport:
            blend = BlendOptions(collection="harbour", top_k=4, recompute_ratio=0.2)
            answered = client.chat([{"role": "user", "content": question}], blend=blend, extra={"max_tokens": 4})
            assert answered.kvblend is not None
            return answered.kvblend.report

        for asked in (query, streamed, chat):
            before = fleet.decode[kind].handed_on
            report = asked(f"What does boat {next(numbers)} pay?")
            assert report.outcome == "blended" and report.missed_passages == 0, report
            assert report.reused_tokens > 0
            assert fleet.decode[kind].handed_on - before >= report.context_tokens


def test_prefill_node_killed(fleet: Fleet, case: Case) -> None:
    """With KV that no decode node has fetched yet: each makes it itself, exact. It comes back, and is used again.

    By another plan, with a salt of its own: under that of the first, decode nodes have the exact KV that they made.
    """
    blended = ask(fleet.prefill.url, case.blended)
    both_prefilled = Barrier(2, action=fleet.prefill.kill)
    for each in fleet.proxies.values():
        each.between = partial(both_prefilled.wait, timeout=300)
    with ThreadPoolExecutor() as threads:
        said = list(threads.map(lambda each: ask(each.url, case.blended), fleet.proxies.values()))
    for each in fleet.proxies.values():
        each.between = lambda: None
        assert httpx.post(f"{each.url}{PATH}", json=case.plain, timeout=300, trust_env=False).status_code == 502
    outcomes = [report and report.outcome for report in map(report_in, said)]
    assert outcomes == [None, "prefilled"], "where kvblend's connector is, it says so"
    for node, own in zip(fleet.decode.values(), said, strict=True):
        case.assert_exact(own, blended)
        case.assert_exact(ask(node.url, case.plain), blended)
    fleet.prefill.start(fleet.closing)
    fleet.prefill.wait_ready()
    plan = case.plan.model_copy(update={"selector": "none"})
    for kind in fleet.decode:
        again = replace(case, report_id=uuid.uuid4().hex, plan=plan)
        again.assert_blended(ask(fleet.proxies[kind].url, again.blended))
        case.assert_exact(ask(fleet.proxies[kind].url, case.plain), blended)


@kinds
def test_decode_node_killed(fleet: Fleet, case: Case, kind: str) -> None:
    """In the middle of an answer: it ends, and all others live. Last of all, since they do not come back."""
    long = answer(case.prompt, max_tokens=400, stream=True)
    body, lines = blend(long, fleet.prompts.plan, case.report_id), list[str]()
    url = f"{fleet.proxies[kind].url}{PATH}"
    with suppress(httpx.HTTPError), httpx.stream("POST", url, json=body, timeout=300, trust_env=False) as chunks:
        for line in chunks.iter_lines():
            if not lines:
                fleet.decode[kind].kill()
            lines.append(line)
    assert lines and "data: [DONE]" not in lines
    blended = ask(fleet.prefill.url, case.blended)
    case.assert_exact(ask(fleet.prefill.url, case.plain), blended)
    for node, each in zip(fleet.decode.values(), fleet.proxies.values(), strict=True):
        if node.process is not None and node.process.pid is not None:
            again = replace(case, report_id=uuid.uuid4().hex)
            again.assert_blended(ask(each.url, again.blended))
            case.assert_exact(ask(each.url, case.plain), blended)
