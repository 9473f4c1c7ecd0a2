"""A tier at the other end of a network: what it may cost a request is bounded, whatever becomes of it."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from kvblend.core.breaker import CircuitBreaker
from kvblend.core.errors import CorruptPassageKVError, StoreFullError
from kvblend.core.rest import TierStats
from kvblend.store.buffers import byte_view
from kvblend.store.content import PassageKVContent
from kvblend.store.deadline import Deadline
from kvblend.store.key import PassageKVKey, Variant, passage_folder
from kvblend.store.remote.claiming import Claiming
from kvblend.store.remote.objects import RemoteFullError, RemoteObjects
from kvblend.store.remote.remote_passage import RemotePassage
from kvblend.store.tier import Tier

__all__ = ["RemoteTier"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

NUM_THREADS = 8
"""Calls under way at once. One that is abandoned keeps its thread until the client's own time limit."""
MAX_FAILURES = 3
REOPEN_S = 2.0
GIVE_BACK_S = 1.0
LONGEST_S = 30.0
"""Of a call whose deadline is later."""


class RemoteTier(Tier):
    """Passage KV as objects: checked whenever they are read, fetched several at once, never waited for too long.

    After `MAX_FAILURES` calls in a row that failed or were late, a circuit breaker answers in their place, until the
    store does again. While it is open lookups and fetches are misses, and puts and deletes raise OSError.
    """

    def __init__(self, objects: RemoteObjects, *, reopen_s: float = REOPEN_S) -> None:
        self.name, self.location = objects.name, objects.location
        self._objects = objects
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix=f"kvblend-{objects.name}")
        self._breaker = CircuitBreaker(str(self), max_failures=MAX_FAILURES, pause_s=reopen_s)

    @property
    def is_shunned(self) -> bool:
        return self._breaker.is_open

    def lookup_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> set[PassageKVKey]:
        names = {key.file_name: key for key in keys}
        if not names:
            return set()
        try:
            (found,) = self._call([lambda: self._objects.exist(list(names))], deadline)
        except OSError as error:
            log.debug("the %s tier's lookup is a miss: %s", self.name, error)
            return set()
        return {names[name] for name in found}

    def fetch_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> Mapping[PassageKVKey, RemotePassage]:
        wanted = list(dict.fromkeys(keys))
        came: dict[PassageKVKey, Any] = {}

        def fetch(key: PassageKVKey) -> None:
            came[key] = self._objects.get(key.file_name)

        try:
            if wanted:
                self._call([lambda key=key: fetch(key) for key in wanted], deadline)  # type: ignore[misc]
        except OSError as error:
            log.debug("of %d fetches of the %s tier %d came: %s", len(wanted), self.name, len(came), error)
        opened = {}
        for key, data in list(came.items()):  # one that is late may come while this runs
            if data is not None and (passage := self._opened(key, data)) is not None:
                opened[key] = passage
        return opened

    def put(self, content: PassageKVContent, deadline: Deadline) -> bool:
        data, name = content.to_bytes(), content.key.file_name
        try:
            (stored,) = self._call([lambda: self._objects.put(name, data)], deadline)
        except RemoteFullError as error:
            raise StoreFullError(f"the {self.name} tier has no room for {len(data)} bytes: {error}") from error
        return bool(stored)

    def delete(self, variants: Collection[Variant], deadline: Deadline) -> int:
        by_folder: dict[str, set[str]] = {}
        for variant in variants:
            by_folder.setdefault(variant.folder, set()).add(f"{variant.name}.")
        num_deleted = 0
        for folder, own in by_folder.items():
            (count,) = self._call([partial(self._objects.delete_beginning, folder, own)], deadline)
            num_deleted += count
        return num_deleted

    def variants(self, model_fingerprint: str, passage_id: str, deadline: Deadline) -> set[PassageKVKey]:
        folder = passage_folder(model_fingerprint, passage_id)
        try:
            (names,) = self._call([lambda: self._objects.names_in(folder)], deadline)
        except OSError as error:
            log.debug("the %s tier's variants are not known: %s", self.name, error)
            return set()
        return {key for name in names if (key := PassageKVKey.from_file_name(name)) is not None}

    def claim(self, variant: Variant, seconds: float, deadline: Deadline) -> Callable[[], object] | None:
        claiming = Claiming(partial(self._objects.claim, variant.name, seconds))
        try:
            give_back = self._try([claiming.take], deadline)[0]
        except OSError as error:
            log.debug("the %s tier has no claim on %s: %s", self.name, variant.name, error)
            if (late := claiming.abandon()) is not None:
                self._threads.submit(late)
            return lambda: None
        return give_back and partial(self._give_back, give_back)

    def stats(self) -> TierStats:
        """Nothing is counted here: it is others' store too."""
        return TierStats(name=self.name, path=self.location, budget_bytes=0, used_bytes=0, num_files=0, num_pinned=0)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._objects.close()

    def _give_back(self, give_back: Callable[[], object]) -> None:
        with suppress(OSError):  # it ends by itself
            self._try([give_back], Deadline.after(GIVE_BACK_S))

    def _try(self, works: Sequence[Callable[[], Result]], deadline: Deadline) -> list[Result]:
        """`_call` of what is no more than a courtesy: that it fails says nothing of the KV, and does not open the
        circuit breaker."""
        if deadline.passed or self._breaker.is_open:
            raise OSError(f"the {self} is not asked now")
        return self._gather(works, deadline)

    def _call(self, works: Sequence[Callable[[], Result]], deadline: Deadline) -> list[Result]:
        """Do all at once, and wait for them until the deadline. Raises OSError where one failed or is late.

        Where no time is left to begin with, that is not the store's fault.
        """
        if deadline.passed:
            raise TimeoutError("there is no time left to ask")
        if not self._breaker.allows():
            raise OSError(f"the {self} is not asked now: it failed again and again")
        try:
            results = self._gather(works, deadline)
        except RemoteFullError:
            self._breaker.succeeded()  # it answers
            raise
        except BaseException as error:
            self.num_failures += 1
            self._breaker.failed(error)
            raise
        self._breaker.succeeded()
        return results

    def _gather(self, works: Sequence[Callable[[], Result]], deadline: Deadline) -> list[Result]:
        timeout_s = min(deadline.remaining, LONGEST_S)
        futures: list[Future[Result]] = [self._threads.submit(work) for work in works]
        _, late = wait(futures, timeout=timeout_s)
        for future in late:
            future.cancel()
        if late:
            raise TimeoutError(f"{len(late)} of {len(futures)} answers had not come after {timeout_s:.3f} s")
        return [future.result() for future in futures]

    def _opened(self, key: PassageKVKey, data: Any) -> RemotePassage | None:
        try:
            return RemotePassage(key, data, tier=self.name, put_aside=self._put_aside)
        except CorruptPassageKVError as error:
            self._delete_corrupt(key, error.message)
            return None

    def _put_aside(self, passage: RemotePassage) -> bool:
        """Delete a corrupt object, if it is still what it was."""
        key = passage.header.key
        try:
            data = self._objects.get(key.file_name)
        except OSError as error:
            log.warning("passage KV %s in the %s tier is corrupt and stays there: %s", key.file_name, self.name, error)
            return False
        if data is None or memoryview(data).cast("B") != byte_view(passage.memory):
            return False
        return self._delete_corrupt(key, "a layer's checksum is wrong")

    def _delete_corrupt(self, key: PassageKVKey, reason: str) -> bool:
        try:
            self._objects.delete([key.file_name])
        except OSError as error:
            reason = f"{reason}; it stays there: {error}"
        log.warning("passage KV %s in the %s tier: %s; deleted", key.file_name, self.name, reason)
        return True
