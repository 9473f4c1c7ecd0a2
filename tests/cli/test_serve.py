"""`kvblend serve` in front of vLLM servers that run already."""

import pytest
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.core.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine-url", "http://a", "--engine-url", "http://b"], "2 --engine-url and 1 --control: give one for each"),
        (["--engine-url", "http://a", "--control", "ipc:///a", "--control", "ipc:///b"], "1 --engine-url and 2"),
        (["--engine-url", "http://a", "--engine-url", "http://b", *["--control", "ipc:///a"] * 2], "ipc:///a is given"),
        ([*["--engine-url", "http://a"] * 2, "--control", "ipc:///a", "--control", "ipc:///b"], "http://a is given tw"),
        (["--engine-url", "http://router", "--control", "ipc:///a,ipc:///b,ipc:///a"], "ipc:///a is given twice"),
        (["--engine-url", "http://router", "--control", "ipc:///a,,ipc:///b"], "an address of --control .* is empty"),
    ],
)  # fmt: skip
def test_each_vllm_server_has_a_control_channel_of_its_own(options: list[str], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        CliRunner().invoke(app, ["serve", "demo", *options], catch_exceptions=False)
