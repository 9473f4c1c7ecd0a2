"""What the service adds to vLLM's time to first token, measured on the real service."""

import pytest
from rich.console import Console

from kvblend.eval.bench.rest import added_rows
from kvblend.sdk import Client
from tests.service import RunningService


def test_rows(service: RunningService) -> None:
    """Every request has both times, and the client's is the longer."""
    with Client(service.url) as client:
        client.create_collection("added")
        text = "\n\n".join(f"The tower of Vik number {number} has {number + 3} windows." for number in range(60))
        client.wait(client.add_document("added", text, id="towers"))
        questions = ["How many windows does tower 7 have?", "Which tower has 12 windows?"]
        rows = added_rows(client, "added", questions, repeats=2, passages=4, console=Console(quiet=True))
    blend, full = rows
    assert (blend["mode"], full["mode"]) == ("blend", "none")
    assert blend["requests"] == full["requests"] == 4
    assert (blend["blended"], full["blended"]) == (4, 0), "a repeated question is a question of its own"
    for row in rows:
        assert row["prompt_tokens"] > 100
        assert 0 < row["engine_ttft_ms_p50"] < row["ttft_ms_p50"]
        assert 0 < row["added_ms_p50"] <= row["added_ms_max"]
        assert row["ttft_ms_p50"] == pytest.approx(row["engine_ttft_ms_p50"] + row["added_ms_p50"], rel=0.5)
