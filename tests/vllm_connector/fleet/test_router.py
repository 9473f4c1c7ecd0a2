"""vllm-router, as pip installs it, in front of two real vLLM servers on one store: all questions over a context meet
the same server, by the header that the service sends; and the service finds the report of whichever answered."""

import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from transformers import AutoTokenizer

from kvblend.api import ServiceConfig
from kvblend.cli.engine import free_port
from kvblend.core.order_fields import SESSION, session_id
from kvblend.core.report import BlendReport
from kvblend.core.settings import Settings
from tests.api.front import running
from tests.environments import ENVIRONMENTS, installed
from tests.vllm_connector.fleet.nodes import PATH, Node, Prompts, answer, ask, blend, encode, kvblend, report_in, store

pytestmark = pytest.mark.extended

VERSION = "0.1.17"
NUM_QUESTIONS = 2


@dataclass
class Routed:
    url: str
    nodes: Sequence[Node]
    prompts: Prompts

    def counts(self) -> list[int]:
        """Requests that each server has answered."""
        lines = (re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", node.metrics(), re.MULTILINE)
                 for node in self.nodes)  # fmt: skip
        return [int(sum(map(float, own))) for own in lines]


@pytest.fixture(scope="module")
def routed(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str) -> Iterator[Routed]:
    environment = ENVIRONMENTS / f"vllm-router-{VERSION}"
    if not environment.is_dir():
        installed(f"vllm-router=={VERSION}", environment)
    folder, port = tmp_path_factory.mktemp("routed"), free_port()
    nodes = [Node(name, folder, demo_model_path, dtype, kvblend()) for name in ("one", "other")]
    with ExitStack() as closing:
        for node in nodes:
            node.start(closing)
        for node in nodes:
            node.wait_ready()
        command = [str(environment / "bin" / "vllm-router"), "--policy", "consistent_hash", "--port", str(port)]
        command += ["--host", "127.0.0.1", "--prometheus-port", str(free_port())]
        log = closing.enter_context((folder / "router.log").open("wb"))
        process = subprocess.Popen([*command, "--worker-urls", *(node.url for node in nodes)], stdout=log, stderr=log)
        closing.callback(process.wait)
        closing.callback(process.kill)
        made = Routed(f"http://127.0.0.1:{port}", nodes, Prompts(AutoTokenizer.from_pretrained(demo_model_path)))
        until = time.monotonic() + 120
        while not _answers(made.url):
            assert time.monotonic() < until and process.poll() is None, (folder / "router.log").read_text()
            time.sleep(0.1)
        store(nodes[0], made.prompts, lambda tokens, order: ask(nodes[0].url, encode(tokens, order)))
        yield made


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_questions_over_a_context_meet_one_server(routed: Routed) -> None:
    """Which has blended it before; other contexts go to the other one, too. The report comes with the answer."""
    served = set[int]()
    for pair in permutations(range(len(routed.prompts.passages)), 2):
        context, plan = routed.prompts.over(pair)
        before = routed.counts()
        for _ in range(NUM_QUESTIONS):
            prompt = [*context, *routed.prompts.question()]
            body = blend(answer(prompt, max_tokens=1), plan, uuid.uuid4().hex, salted=False, proxied=False)
            told = {SESSION: session_id(context)}
            said = httpx.post(f"{routed.url}{PATH}", json=body, headers=told, timeout=300, trust_env=False)
            assert said.status_code == 200, said.text
            report = report_in(said.json())
            assert report is not None and report.outcome == "blended" and report.missed_passages == 0
        more = [after - own for after, own in zip(routed.counts(), before, strict=True)]
        assert sorted(more) == [0, NUM_QUESTIONS], f"{pair}: {more}"
        served.add(more.index(NUM_QUESTIONS))
    assert served == {0, 1}


@pytest.fixture
def streamed(
    routed: Routed, demo_model_path: Path, embedding_model_path: Path, tmp_path: Path
) -> Callable[[str], list[BlendReport]]:
    """The reports of streamed answers over twelve contexts, through a service that knows these control channels."""

    def made(controls: str) -> list[BlendReport]:
        config = ServiceConfig(
            model=str(demo_model_path),
            embedding_model=embedding_model_path,
            engines=[(routed.url, controls)],
            settings=Settings(**{**routed.nodes[0].tiers, "home": tmp_path / str(len(controls))}, cost_model=False),
        )
        documents = [" ".join(f"{word}{number}" for word in ("basalt", "lamp", "ferry") * 30) for number in range(4)]
        reports = []
        with running(config) as url, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            (model,) = client.models.list()
            for pair in permutations(documents, 2):
                *_, last = client.chat.completions.create(
                    model=model.id,
                    messages=[{"role": "user", "content": uuid.uuid4().hex}],
                    max_tokens=2,
                    extra_body={"kvblend": {"documents": list(pair), "recompute_ratio": 0.2}},
                    stream=True,
                )
                reports.append(BlendReport.model_validate((last.model_extra or {})["kvblend"]["report"]))
        return reports

    return made


def test_the_service_has_the_report_of_whichever_answered(
    routed: Routed, streamed: Callable[[str], list[BlendReport]]
) -> None:
    """Streamed answers do not bring it along. Control: by one server's channel the other one's are not found."""
    one, other = (node.control for node in routed.nodes)
    unknown = "the control channel gave no report"
    assert unknown in [report.reason for report in streamed(one)]
    reports = streamed(f"{one},{other}")
    assert unknown not in [report.reason for report in reports]
    assert [report.outcome for report in reports].count("blended") >= 6
