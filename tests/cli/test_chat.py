"""`kvblend query --chat`: a conversation on a terminal and in a pipe, against a service whose engine is scripted."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pexpect
import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.sdk import Client
from tests.api.scripted_service import ScriptedService

COMMAND = ["query", "--chat", "-c", "talk", "--max-tokens", "4"]
LONG = 90


@pytest.fixture(scope="module", autouse=True)
def talk(scripted: ScriptedService) -> None:
    with Client(scripted.url, api_key="secret") as client:
        client.create_collection("talk")
        client.wait(client.add_document("talk", "The report is signed by the harbour master of Vik.", id="report"))


@pytest.fixture
def prompts(asked: ScriptedService, demo_model_path: Path) -> Any:
    """The texts of the prompts that the engine gets during a test, from its first on."""
    begin, tokenizer = len(asked.engine.bodies), AutoTokenizer.from_pretrained(demo_model_path)
    return lambda: [
        tokenizer.decode(body["kv_transfer_params"]["prompt_token_ids"])
        for body in asked.engine.bodies[begin:]
        if body.get("stream")
    ]


def test_lines_are_answered_with_what_came_before(prompts: Any) -> None:
    result = CliRunner().invoke(app, [*COMMAND, "Who signs?", "--json"], input="And when?\n\n/new\nWhere?\n")
    assert result.exit_code == 0, result.output
    turns = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(turn["question"], turn["answer"]) for turn in turns] == [
        ("Who signs?", "xxxx"), ("And when?", "xxxx"), ("Where?", "xxxx"),
    ]  # fmt: skip
    assert all(turn["sources"][0]["document_id"] == "report" for turn in turns)
    first, second, third = prompts()
    assert "Who signs?" in first and "harbour master" in first
    assert "Who signs?" in second and "xxxx" in second and "And when?" in second
    assert "Who signs?" not in third and "Where?" in third


@pytest.mark.usefixtures("asked")
def test_a_pipe_reads_plain_text() -> None:
    result = CliRunner().invoke(app, COMMAND, input="Who signs?\n")
    assert result.stdout.startswith("xxxx\n") and "\x1b" not in result.stdout and "blended: of " in result.stdout


def test_a_terminal_shows_answers_as_they_come_stops_them_and_lives_through_a_refusal(asked: ScriptedService) -> None:
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = ["-P", "-m", "kvblend.cli", *COMMAND, "--max-tokens", str(LONG)]
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which xdist's workers ignore, and so would it
    terminal = pexpect.spawn(
        sys.executable, command, encoding="utf-8", timeout=120, env=environment, preexec_fn=listening
    )
    asked.engine.token_s = 0.3
    try:
        terminal.expect("\n> ")
        terminal.sendline("Who signs?")
        terminal.expect("x+")  # the answer has begun
        terminal.sendintr()
        terminal.expect("\n> ")
        assert "x" * LONG not in terminal.before
        asked.engine.token_s = 0.0
        terminal.sendline("And when?")
        terminal.expect("x" * LONG)
        terminal.expect("blended: of ")
        terminal.expect("\n> ")
        asked.engine.refusal = (400, {"error": {"message": "out of words"}})
        terminal.sendline("Where?")
        terminal.expect("out of words")
        terminal.expect("\n> ")
        asked.engine.refusal = None
        terminal.sendeof()
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 0
    finally:
        asked.engine.token_s, asked.engine.refusal = 0.0, None
        terminal.close(force=True)
