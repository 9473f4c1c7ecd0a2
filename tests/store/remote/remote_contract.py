"""What every remote tier must do, on a real server, and what a request gets from one within its deadline."""

import time
from pathlib import Path

import torch

from kvblend.store import Deadline, PassageKVKey, Tier
from kvblend.store.remote import RemoteTier
from tests.store.remote.servers import Server
from tests.store.samples import make_key, make_kv
from tests.store.tier_contract import TierContract

__all__ = ["AMPLE_S", "DEADLINE_S", "SLACK_S", "RemoteContract", "fetch_in_time", "until_it_answers"]

DEADLINE_S = 0.2
"""What a call gets that is to miss it."""
SLACK_S = 3.0
"""By which a busy machine may be late; who heeds no deadline waits for ever."""
AMPLE_S = 20.0
"""What a call gets that is to be answered, however busy the machine is."""


class RemoteContract(TierContract):
    counts = False
    server: Server

    def make_tier(self, folder: Path, *, budget_bytes: int) -> Tier:
        return RemoteTier(self.server.objects())

    def damage(self, tier: Tier, key: PassageKVKey, *, offset: int) -> None:
        data = bytearray(self.server.read(key.file_name))
        data[offset] ^= 1
        self.server.overwrite(key.file_name, bytes(data))


def fetch_in_time(tier: RemoteTier, *numbers: int, deadline_s: float = DEADLINE_S) -> set[PassageKVKey]:
    """What a request gets within its deadline; whatever that is, it is right, and costs no more."""
    began = time.monotonic()
    files = tier.fetch_many([make_key(number) for number in numbers], Deadline.after(deadline_s))
    assert time.monotonic() - began < deadline_s + SLACK_S
    for number in numbers:
        if make_key(number) in files:
            assert torch.equal(files[make_key(number)].read(), make_kv(number))
    return set(files)


def until_it_answers(tier: RemoteTier, number: int) -> None:
    """It recovers by itself."""
    until = time.monotonic() + 120
    while not tier.fetch_many([make_key(number)], Deadline.after(AMPLE_S)):
        assert time.monotonic() < until
        time.sleep(0.05)
