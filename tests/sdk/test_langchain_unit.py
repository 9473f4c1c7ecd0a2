"""The chat model in LangChain's unit suite, and what it makes of metadata: no service is there."""

import json
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.load.load import _default_class_paths_cache, _get_default_allowed_class_paths
from langchain_tests.unit_tests import ChatModelUnitTests

from kvblend.sdk.langchain import ChatKVBlend

URL = "http://127.0.0.1:9"


class TestUnit(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _known_to_langchain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The suite loads only what stands in langchain-core's own list of partners."""
        known = _get_default_allowed_class_paths("all") | {tuple(ChatKVBlend.lc_id())}
        monkeypatch.setitem(_default_class_paths_cache, "all", known)

    @property
    def chat_model_class(self) -> type[ChatKVBlend]:
        return ChatKVBlend

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "any"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"KVBLEND_URL": URL, "KVBLEND_API_KEY": "secret"}
        return environment, {"model": "any"}, {"openai_api_base": f"{URL}/v1", "openai_api_key": "secret"}


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.arange(2), "[0 1]"),
        (Decimal("1.50"), "1.50"),
        (date(2026, 1, 2), "2026-01-02"),
        (b"\xff", "_w=="),
        ([np.float32(0.5), object], [0.5, str(object)]),
        (None, None),
    ],
    ids=repr,
)
def test_metadata_may_hold_anything(value: Any, sent: Any) -> None:
    """In what is asked, and in what LangChain's callbacks and caches know a model by."""
    chat = ChatKVBlend(base_url=URL, documents=[Document(page_content="The lamp burns.", metadata={"m": value})])
    payload = chat._get_request_payload("Who?")
    for blend in (payload["extra_body"]["kvblend"], chat._identifying_params["blend"]):
        assert json.loads(json.dumps(blend))["documents"][0]["metadata"].get("m") == sent
