"""What a scripted engine keeps of an encode order: made up, but whole files under the right names."""

from collections.abc import Sequence

import torch

from kvblend.core.identity import token_hash
from kvblend.core.plan import EncodeOrder
from kvblend.store import PassageKVKey, TieredStore
from tests.api.scripted_service import INFO

__all__ = ["store_encode"]


def store_encode(store: TieredStore, prompt: Sequence[int], order: EncodeOrder) -> None:
    """Store the KV that an order wants of a prompt's tokens, as the connector does."""
    for start, end in order.spans:
        context = token_hash(prompt[:start], salt=order.salt)
        key = PassageKVKey(INFO.model_fingerprint, context, token_hash(prompt[start:end]), 0, 1)
        store.put(key, torch.zeros(1, 2, end - start, 1, 8), capture_position=start, owners=order.owners)
