"""What the live guard does with its samples, on a server that answers by a rule."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from kvblend.api.engine import control
from kvblend.api.engine.answer_tokens import AnswerToken, answer_tokens
from kvblend.api.engine.replicas import Replica
from kvblend.api.metrics import Metrics
from kvblend.api.quality import live_guard
from kvblend.api.quality.answer_sample import AnswerSample, can_be_sampled
from kvblend.api.quality.live_guard import MAX_WAITING, MIN_COMPARED, LiveGuard
from kvblend.core.calibration import QualityTarget
from kvblend.core.report import BlendReport
from tests.api.scripted_engine import LIKELY, ScriptedEngine, scripted_token

BLENDED = BlendReport(outcome="blended", reused_tokens=100)
PROMPT = list(range(10))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedEngine]:
    monkeypatch.setattr(live_guard, "IDLE_S", 0.05)
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.1)
    engine = ScriptedEngine()
    with engine.running():
        yield engine


@pytest.fixture
async def replica(engine: ScriptedEngine, tmp_path: Path) -> AsyncIterator[Replica]:
    replica = Replica(engine.url, f"ipc://{tmp_path}/control.sock")
    yield replica
    await replica.close()


async def sample(replica: Replica, *, departs_at: tuple[int, ...] = (), probability: float = LIKELY) -> AnswerSample:
    """An answer of six tokens, each likeliest with `probability`; some take the second likeliest."""
    tokens = []
    for index in range(6):
        token = scripted_token(len(PROMPT) + index)
        likeliest = {token: math.log(probability), token + 1: math.log(1 - probability)}
        tokens.append(AnswerToken(token + (index in departs_at), likeliest))
    return AnswerSample(replica, await replica.facts(), PROMPT, tokens)


def count(metrics: Metrics, name: str) -> float:
    lines = metrics.text().decode().splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not condition():  # noqa: ASYNC110 (nothing tells of what a thread or another process does)
            await asyncio.sleep(0.02)


async def test_an_answer_is_followed_where_full_prefill_departs(engine: ScriptedEngine, replica: Replica) -> None:
    """Reference: the rule's distribution in each of the answer's places. Ours: it is asked again after each departure,
    with one salt."""
    found = await (await sample(replica, departs_at=(1, 4), probability=0.5)).compare()
    expected = LIKELY * math.log(LIKELY / 0.5) + (1 - LIKELY) * math.log((1 - LIKELY) / 0.5)
    assert found.kl == pytest.approx(expected, abs=1e-5)
    assert [len(body["prompt"]) for body in engine.bodies] == [10, 12, 15]
    assert engine.bodies[1]["prompt"][10:] == [scripted_token(10), scripted_token(11) + 1]
    assert len({body["cache_salt"] for body in engine.bodies}) == 1
    assert all("kv_transfer_params" not in body for body in engine.bodies)


async def test_what_is_found_is_counted_and_warned_of_once(
    engine: ScriptedEngine, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    guard = LiveGuard(metrics, ratio=1.0)
    guard.start()
    with caplog.at_level(logging.WARNING, logger="kvblend.api.quality.live_guard"):
        for index in range(MIN_COMPARED + 2):
            guard.add(await sample(replica, probability=0.5), BLENDED, target=QualityTarget(0.01, 0.9))
            await until(lambda done=index + 1: guard.state is not None and guard.state.num_compared == done)  # type: ignore[misc]
            assert guard.state is not None and guard.state.misses_target == (index + 1 >= MIN_COMPARED)
    await guard.close()
    warnings = [record.getMessage() for record in caplog.records if record.name == live_guard.__name__]
    assert len(warnings) == 1 and "above their target 0.01" in warnings[0]
    assert guard.state is not None and guard.state.mean_kl == pytest.approx(
        count(metrics, "kvblend_guard_mean_kl_nats")
    )
    assert count(metrics, "kvblend_guard_misses_target") == 1.0
    assert count(metrics, 'kvblend_guard_samples_total{outcome="compared"}') == MIN_COMPARED + 2


async def test_answers_that_disagree_miss_a_target_of_any_kl(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    guard = LiveGuard(Metrics(), ratio=1.0)
    guard.start()
    for index in range(MIN_COMPARED):
        probability = 0.3 if index % 2 else 0.7
        guard.add(await sample(replica, probability=probability), BLENDED, target=QualityTarget(100.0, 0.8))
        await until(lambda done=index + 1: guard.state is not None and guard.state.num_compared == done)  # type: ignore[misc]
    await guard.close()
    assert guard.state is not None and guard.state.misses_target
    assert (guard.state.held_first_agreement, guard.state.held_agreement) == (0.5, 0.5)
    assert "0.50 of the tokens are full prefill's, below their target 0.80" in caplog.text


async def test_a_request_aborts_the_comparison(engine: ScriptedEngine, replica: Replica) -> None:
    metrics = Metrics()
    engine.token_s = 60.0  # far longer than it takes until a request comes
    guard = LiveGuard(metrics, ratio=1.0)
    guard.start()
    guard.add(await sample(replica), BLENDED, target=None)
    await until(lambda: len(engine.bodies) == 1)
    with replica.request():
        await until(lambda: count(metrics, 'kvblend_guard_samples_total{outcome="abandoned"}') == 1.0)
        await until(lambda: engine.num_aborted == 1)
        guard.add(await sample(replica), BLENDED, target=None)
        await asyncio.sleep(0.3)
        assert len(engine.bodies) == 1, "a busy server is left alone"
    await until(lambda: len(engine.bodies) == 2)
    await guard.close()


async def test_a_failure_is_counted_and_the_next_is_compared(
    engine: ScriptedEngine, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    engine.is_broken = True
    guard = LiveGuard(metrics, ratio=1.0)
    guard.start()
    guard.add(await sample(replica), BLENDED, target=None)
    await until(lambda: count(metrics, 'kvblend_guard_samples_total{outcome="failed"}') == 1.0)
    assert "out of order" in caplog.text
    engine.is_broken = False
    guard.add(await sample(replica), BLENDED, target=None)
    await until(lambda: count(metrics, 'kvblend_guard_samples_total{outcome="compared"}') == 1.0)
    await guard.close()


async def test_the_queue_is_bounded(replica: Replica) -> None:
    metrics = Metrics()
    guard = LiveGuard(metrics, ratio=1.0)
    for _ in range(MAX_WAITING + 3):
        guard.add(await sample(replica), BLENDED, target=None)
    guard.add(await sample(replica), BlendReport(outcome="prefilled"), target=None)
    assert count(metrics, 'kvblend_guard_samples_total{outcome="dropped"}') == 3.0


async def test_switched_off_it_takes_nothing(replica: Replica) -> None:
    guard = LiveGuard(Metrics(), ratio=0.0)
    guard.start()
    assert guard.state is None
    assert guard.sample(replica, await replica.facts(), {}, prompt_ids=PROMPT) is None
    await guard.close()


def test_requests_that_cannot_carry_the_guards_fields() -> None:
    assert can_be_sampled({"max_tokens": 5, "temperature": 0.3, "n": 1, "echo": False})
    for sampling in ({"logprobs": 0}, {"n": 2}, {"prompt_logprobs": 1}, {"use_beam_search": True}):
        assert not can_be_sampled(sampling), sampling


def test_the_tokens_of_a_chat_are_read_as_those_of_a_completion() -> None:
    """Reference: a completion's chunk. Ours: the same tokens as a chat says them."""
    tops = {"token_id:5": -0.1, "token_id:7": -2.5}
    completion = {"tokens": ["token_id:7"], "token_logprobs": [-2.5], "top_logprobs": [tops]}
    listed = [{"token": token, "logprob": value} for token, value in tops.items()]
    chat = {"content": [{"token": "token_id:7", "logprob": -2.5, "top_logprobs": listed}]}
    (reference,) = answer_tokens({"choices": [{"logprobs": completion}]})
    assert list(answer_tokens({"choices": [{"logprobs": chat}]})) == [reference]
    assert (reference.token_id, reference.likeliest) == (7, 5)
    assert not list(answer_tokens({"choices": [{"logprobs": None}, {"delta": {}}]}))
