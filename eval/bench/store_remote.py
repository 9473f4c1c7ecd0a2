"""How fast remote tiers put and get a passage KV, beside loopback TCP in the same run."""

from collections.abc import Iterator, Sequence
from typing import Any

from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings
from kvblend.eval.bench.local_valkey import local_valkey
from kvblend.eval.bench.store_io import CODECS, sample_kv, tier_rows
from kvblend.eval.bench.tcp_floor import tcp_floors
from kvblend.store import Tier
from kvblend.store.codecs import CodecSpec
from kvblend.store.remote import remote_tiers

__all__ = ["remote_rows"]


def remote_rows(
    urls: Sequence[str], sizes: Sequence[int], codecs: Sequence[CodecSpec] = CODECS, *, valkey_port: int
) -> Iterator[dict[str, Any]]:
    """Rows as `io_rows`, of the tiers at `urls`; where there are none of a Valkey server of our own on `valkey_port`,
    if there is one.

    The floors: `num_bytes` of plain TCP between two processes of this host. Credentials are those of
    KVBLEND_REMOTE_USERNAME and KVBLEND_REMOTE_PASSWORD. Raises InvalidRequestError where a tier fails.
    """
    if urls:
        yield from _rows(remote_tiers(Settings(remote=" ".join(urls))), sizes, codecs)
        return
    with local_valkey(valkey_port) as url:
        yield from _rows(remote_tiers(Settings(remote=url, remote_username=None, remote_password=None)), sizes, codecs)


def _rows(tiers: Sequence[Tier], sizes: Sequence[int], codecs: Sequence[CodecSpec]) -> Iterator[dict[str, Any]]:
    for tier in tiers:
        try:
            for num_bytes in sizes:
                kv = sample_kv(num_bytes)
                for codec in codecs:
                    yield from tier_rows(tier, kv, codec, tcp_floors(kv.nbytes))
        except OSError as error:
            raise InvalidRequestError(f"the {tier}: {error}", param="remote") from error
        finally:
            tier.close()
