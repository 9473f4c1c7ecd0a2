"""Passage KV in other hosts' memory, as a tier."""

import errno
import logging
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from kvblend.core.breaker import CircuitBreaker
from kvblend.core.errors import CorruptPassageKVError
from kvblend.core.rest import TierStats
from kvblend.store.content import PassageKVContent
from kvblend.store.deadline import NEVER, Deadline
from kvblend.store.key import PassageKVKey, Variant
from kvblend.store.peers.addresses import SCHEME, Address
from kvblend.store.peers.host_process import HostProcess
from kvblend.store.peers.local_client import LocalClient
from kvblend.store.peers.messages import MAX_NAMES, Reply
from kvblend.store.remote.remote_passage import RemotePassage
from kvblend.store.tier import Tier

__all__ = ["PeerTier"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Item = TypeVar("Item")

MAX_FAILURES = 3
REOPEN_S, LONGEST_PAUSE_S = 0.5, 4.0
GIVE_BACK_S = 1.0


class PeerTier(Tier):
    """What peers hold in their CPU and disk tiers. It is read, and never written: what each holds is its own to keep,
    so nothing lasts here. A delete reaches every peer.

    Whether each peer answers is the peer process's to judge; here, whether that process does.
    """

    name = "peers"
    takes_puts = False

    def __init__(self, process: HostProcess, addresses: Sequence[Address]) -> None:
        self.location = f"{SCHEME}://{','.join(map(str, addresses))}"
        self._client = LocalClient(process)
        self._breaker = CircuitBreaker(
            "host's own peer process",
            max_failures=MAX_FAILURES,
            pause_s=REOPEN_S,
            longest_pause_s=LONGEST_PAUSE_S,
        )

    @property
    def is_shunned(self) -> bool:
        return self._breaker.is_open

    def lookup_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> set[PassageKVKey]:
        names = {key.file_name: key for key in keys}
        found = set[PassageKVKey]()
        for some in _batches(list(names)):
            try:
                reply = self._ask("lookup", deadline, names=some)
                self.num_failures += len(reply.unreached)
                found |= {names[name] for name in reply.names if name in names}
            except OSError as error:
                log.debug("a lookup in the %s tier is a miss: %s", self.name, error)
        return found

    def fetch_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> Mapping[PassageKVKey, RemotePassage]:
        names = {key.file_name: key for key in keys}
        opened = dict[PassageKVKey, RemotePassage]()
        for some in _batches(list(names)):
            try:
                came, num_failures = self._guarded(partial(self._client.fetch, some, deadline), deadline)
                self.num_failures += num_failures
            except OSError as error:
                log.debug("a fetch of the %s tier is a miss: %s", self.name, error)
                continue
            for name, memory in came.items():
                if name in names and (passage := self._opened(names[name], memory)) is not None:
                    opened[names[name]] = passage
        return opened

    def put(self, content: PassageKVContent, deadline: Deadline) -> bool:
        """Raises OSError: nothing is written here."""
        raise OSError(errno.EROFS, f"the {self.name} tier is read alone")

    def delete(self, variants: Collection[Variant], deadline: Deadline) -> int:
        own = [(variant.model_fingerprint, variant.encode_context, variant.passage_id) for variant in variants]
        num_deleted, unreached = 0, list[str]()
        for some in _batches(own):
            reply = self._ask("delete", deadline, variants=some)
            num_deleted += reply.count
            unreached += reply.unreached
        if unreached:
            raise OSError(f"what was deleted may be there still at peers: {'; '.join(dict.fromkeys(unreached))}")
        return num_deleted

    def variants(self, model_fingerprint: str, passage_id: str, deadline: Deadline) -> set[PassageKVKey]:
        try:
            names = self._ask("variants", deadline, passage=(model_fingerprint, passage_id)).names
        except OSError as error:
            log.debug("the %s tier's variants are not known: %s", self.name, error)
            return set()
        return {key for name in names if (key := PassageKVKey.from_file_name(name)) is not None}

    def claim(self, variant: Variant, seconds: float, deadline: Deadline) -> Callable[[], object] | None:
        """By the one peer that decides of the passage, of those that answer."""
        holder = secrets.token_hex(16)
        try:
            reply = self._ask("claim", deadline, names=[variant.name], holder=holder, seconds=seconds)
        except OSError as error:
            log.debug("no peer has decided who encodes %s: %s", variant.name, error)
            return lambda: None
        if not reply.names:
            return None
        return partial(self._give_back, variant.name, holder, reply.by) if reply.by else lambda: None

    def stats(self) -> TierStats:
        """Nothing is counted here: each peer counts its own."""
        return TierStats(name=self.name, path=self.location, budget_bytes=0, used_bytes=0, num_files=0, num_pinned=0)

    def close(self) -> None:
        self._client.close()

    def _give_back(self, name: str, holder: str, by: str) -> None:
        with suppress(OSError):  # it ends by itself
            self._ask("give_back", Deadline.after(GIVE_BACK_S), names=[name], holder=holder, by=by)

    def _ask(self, op: str, deadline: Deadline, **fields: Any) -> Reply:
        return self._guarded(lambda: self._client.ask(op, deadline, **fields), deadline)

    def _guarded(self, work: Callable[[], Result], deadline: Deadline) -> Result:
        if deadline.passed:
            raise TimeoutError("there is no time left to ask")
        if not self._breaker.allows():
            raise OSError("the host's own peer process is not asked now: it failed again and again")
        try:
            result = work()
        except BaseException as error:
            self.num_failures += 1
            self._breaker.failed(error)
            raise
        self._breaker.succeeded()
        return result

    def _opened(self, key: PassageKVKey, memory: Any) -> RemotePassage | None:
        try:
            return RemotePassage(key, memory, tier=self.name, put_aside=self._put_aside)
        except CorruptPassageKVError as error:
            log.warning("passage KV %s came from a peer, and is none: %s", key.file_name, error.message)
            self._checked(key)
            return None

    def _put_aside(self, passage: RemotePassage) -> bool:
        key = passage.header.key
        if not self._checked(key):
            return False
        log.warning(
            "passage KV %s in the %s tier: a layer's checksum is wrong; put aside there", key.file_name, self.name
        )
        return True

    def _checked(self, key: PassageKVKey) -> bool:
        """Have peers read their file, which is theirs to judge; returns whether one has put it aside."""
        try:
            return key.file_name in self._ask("check", NEVER, names=[key.file_name]).names
        except OSError as error:
            log.warning("passage KV %s is corrupt at a peer that cannot be told: %s", key.file_name, error)
            return False


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """As many as one message takes."""
    for start in range(0, len(items), MAX_NAMES):
        yield list(items[start : start + MAX_NAMES])
