"""Plugin of pytest for vLLM's own entrypoint tests: they ask a server that runs already, in place of their own.

`VLLM_TESTS_URL` is where it answers, whatever model and options a test asks for; it knows the model by each of their
names. `VLLM_TESTS_MODEL` is its model's folder, whose tokenizer they get. Nothing of kvblend is imported here.
"""

import os
from typing import Any
from urllib.parse import urlsplit

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Put the server that runs in the place of vLLM's way to start one."""
    import huggingface_hub
    import transformers

    from tests import utils  # type: ignore[attr-defined]  # vLLM's, by PYTHONPATH

    place, model = urlsplit(os.environ["VLLM_TESTS_URL"]), os.environ["VLLM_TESTS_MODEL"]

    def begin(self: Any, *arguments: Any, **options: Any) -> None:
        self.uds, self.host, self.port = None, place.hostname, place.port
        self.show_hidden_metrics = False

    utils.RemoteOpenAIServer.__init__ = begin
    utils.RemoteOpenAIServer.__exit__ = lambda self, *raised: None
    own_tokenizer = transformers.AutoTokenizer.from_pretrained
    transformers.AutoTokenizer.from_pretrained = lambda name, *arguments, **options: own_tokenizer(model)
    # What a test fetches, such as adapters, is for the server that it would start.
    hub: Any = huggingface_hub.HfApi
    hub.snapshot_download = lambda self, *arguments, **options: model
