"""What every remote tier must do, on a real server, and what a request gets from one within its deadline."""

import time
from pathlib import Path

import torch

from kvblend.store import Deadline, PassageKVKey, Tier
from kvblend.store.remote import RemoteTier
from tests.store.remote.servers import Server
from tests.store.samples import make_key, make_kv
from tests.store.tier_contract import TierContract

__all__ = ["DEADLINE_S", "RemoteContract", "fetch_in_time", "until_it_answers"]

DEADLINE_S, SLACK_S = 0.2, 0.15


class RemoteContract(TierContract):
    counts = False
    server: Server

    def make_tier(self, folder: Path, *, budget_bytes: int) -> Tier:
        return RemoteTier(self.server.objects())

    def damage(self, tier: Tier, key: PassageKVKey, *, offset: int) -> None:
        data = bytearray(self.server.read(key.file_name))
        data[offset] ^= 1
        self.server.overwrite(key.file_name, bytes(data))


def fetch_in_time(tier: RemoteTier, *numbers: int) -> set[PassageKVKey]:
    """What a request gets within its deadline; whatever that is, it is right, and costs no more."""
    began = time.monotonic()
    files = tier.fetch_many([make_key(number) for number in numbers], Deadline.after(DEADLINE_S))
    assert time.monotonic() - began < DEADLINE_S + SLACK_S
    for number in numbers:
        if make_key(number) in files:
            assert torch.equal(files[make_key(number)].read(), make_kv(number))
    return set(files)


def until_it_answers(tier: RemoteTier, number: int) -> None:
    """It recovers by itself."""
    until = time.monotonic() + 20
    while not tier.fetch_many([make_key(number)], Deadline.after(2.0)):
        assert time.monotonic() < until
        time.sleep(0.05)
