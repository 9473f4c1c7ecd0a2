"""How much of an ingest is encoded at once, and what its job says where that is not all."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from kvblend.api.kv.encode_room import EncodeRoom
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.core.settings import EncodePolicy, Settings
from kvblend.store import CPUTier, DiskTier, PassageKVKey, TieredStore
from tests.api.engine.test_control import INFO

BUDGET = 100 * 1024


@pytest.fixture
async def kv(tmp_path: Path) -> AsyncIterator[PassageKV]:
    """A disk tier of 100 tokens' KV behind a CPU tier of fewer, with one file in both."""
    tiers = [CPUTier(tmp_path / "cpu", budget_bytes=BUDGET // 2), DiskTier(tmp_path / "disk", budget_bytes=BUDGET)]
    store = TieredStore(tiers)
    store.put(PassageKVKey("f", "0" * 64, "1" * 64, 0, 1), torch.zeros(4, 2, 3, 1, 8), capture_position=0)
    kv = PassageKV(store)
    yield kv
    await kv.close()


@pytest.mark.parametrize(
    ("policy", "lengths", "count", "reason"),
    [
        ("eager", [40, 50, 10], 3, None),
        ("eager", [40, 50, 11, 5], 2, "2 of 4 passages .* about 108544 bytes of KV, and the disk tier holds 102400"),
        ("lazy", [1], 0, None),
        (50 * 1024, [10, 10], 2, None),
        (50 * 1024, [10, 30, 1], 1, "2 of 3 passages .* 41984 bytes of KV, and KVBLEND_ENCODE leaves 30720"),
        (0, [1], 0, "1 of 1 passages .* KVBLEND_ENCODE leaves 0"),
        ("eager", [], 0, None),
    ],
)  # fmt: skip
async def test_as_many_as_there_is_room_for(
    kv: PassageKV, policy: EncodePolicy, lengths: list[int], count: int, reason: str | None
) -> None:
    assert INFO.token_bytes == 1024 and (await kv.stats())[-1].used_bytes == 20 * 1024
    found, said = await EncodeRoom(policy, kv).fitting(lengths, INFO)
    assert found == count
    if reason is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(reason, said), said


async def test_without_an_engine_everything_is_tried(kv: PassageKV) -> None:
    assert await EncodeRoom("eager", kv).fitting([1000], None) == (1, None)


@pytest.mark.parametrize(("text", "policy"), [("lazy", "lazy"), ("1000", 1000)])
def test_the_setting(text: str, policy: EncodePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBLEND_ENCODE", text)
    assert Settings().encode == policy
    for wrong in ("-1", "sometimes"):
        monkeypatch.setenv("KVBLEND_ENCODE", wrong)
        with pytest.raises(ValueError, match="encode"):
            Settings()
