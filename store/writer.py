"""Where a passage KV is written, and what a put waits for."""

import logging
from collections.abc import Callable, Sequence
from typing import Literal

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError, StoreFullError
from kvblend.core.settings import WritePolicy
from kvblend.store.content import CopiedContent, PassageKVContent
from kvblend.store.deadline import NEVER, Deadline
from kvblend.store.stored_passage import StoredPassageKV
from kvblend.store.tier import BoundedTier, Tier
from kvblend.store.tier_counts import TierCounts
from kvblend.store.write_behind import WriteBehind

__all__ = ["StoreWriter"]

log = logging.getLogger(__name__)

STILL_THERE_S = 5.0


class StoreWriter:
    """Writes to the tiers that passage KV must lie in, and sees to copies in the others.

    `memory`: it must lie in one tier, the fastest that has or can make room. `disk`: in the slowest bounded tier, and
    the faster ones are given copies. `remote`: in a remote tier, too. Remote tiers that need not have it get it later.

    Tiers that take no puts are left out. Raises InvalidRequestError where `write` is `remote` and no remote tier is
    left.
    """

    def __init__(
        self, bounded: Sequence[BoundedTier], remotes: Sequence[Tier], write: WritePolicy, counts: TierCounts
    ) -> None:
        remotes = [tier for tier in remotes if tier.takes_puts]
        if write == "remote" and not remotes:
            raise InvalidRequestError(
                "KVBLEND_WRITE is 'remote', and there is no remote tier that is written", param="KVBLEND_WRITE"
            )
        self._bounded, self._remotes, self._write, self._counts = bounded, remotes, write, counts
        self._behind = WriteBehind("store")

    @property
    def lasting_in(self) -> list[Sequence[Tier]]:
        """Groups of tiers: what is committed lies in one of each."""
        if self._write == "memory":
            return [self._bounded]
        return [self._bounded[-1:], *([self._remotes] if self._write == "remote" else [])]

    def put(self, content: PassageKVContent) -> str:
        """Returns the slowest tier in which `content` lies now, by name. Raises StoreFullError."""
        lasting = [self._put_in_any(tiers, content) for tiers in self.lasting_in]
        if self._write != "memory":
            for tier in reversed(self._bounded[:-1]):
                self._put_if_it_fits(tier, content)
        for remote in self._remotes:
            if remote.name not in lasting:
                self._copy_later(remote, content)
        return lasting[-1]

    def keep_near(self, file: StoredPassageKV, source: Tier) -> None:
        """Copy what came from `source`, and can be read as long as it is referred to, to the fastest tier, later."""
        key, nearest = file.header.key, self._bounded[0]

        def copy() -> None:
            if not self._put(nearest, CopiedContent(file)):
                return  # another's, whose own it is
            if not source.lookup_many([key], Deadline.after(STILL_THERE_S)):  # deleted meanwhile, so the copy, too
                nearest.delete([key.variant], NEVER)

        self._behind.submit(f"{key.file_name} is not copied to the {nearest.name} tier", copy)

    def copy_into(self, tier: Tier, file: StoredPassageKV) -> Literal["copied", "was there", "failed"]:
        """Copy an open file to another tier; it fails where it does not fit, cannot be written, or is corrupt."""
        try:
            return "copied" if self._put(tier, CopiedContent(file)) else "was there"
        except StoreFullError:
            return "failed"
        except OSError as error:
            log.warning("the %s tier cannot be written: %s", tier.name, error)
            return "failed"
        except CorruptPassageKVError:
            file.quarantine()
            return "failed"

    def later(self, what: str, work: Callable[[], object]) -> None:
        """Do something behind the others, once for `what`, or not at all where too much waits."""
        self._behind.submit(what, work)

    def drain(self) -> None:
        """Wait until nothing is on its way."""
        self._behind.drain()

    def close(self) -> None:
        self._behind.close()

    def _put_in_any(self, tiers: Sequence[Tier], content: PassageKVContent) -> str:
        """Write to the first that takes it; returns its name. Raises StoreFullError where none does."""
        reasons = []
        for tier in tiers:
            try:
                self._put(tier, content)
            except StoreFullError as error:
                reasons.append(error.message)
            except OSError as error:
                log.warning("the %s tier cannot be written: %s", tier.name, error)
                reasons.append(f"the {tier.name} tier cannot be written: {error}")
            else:
                return tier.name
        raise StoreFullError("; ".join(reasons))

    def _put(self, tier: Tier, content: PassageKVContent) -> bool:
        with self._counts.of(tier.name, "put") as counted:
            counted.num_hits = int(tier.put(content, NEVER))
            counted.num_bytes = counted.num_hits * content.num_bytes
        return bool(counted.num_hits)

    def _put_if_it_fits(self, tier: Tier, content: PassageKVContent) -> None:
        try:
            self._put(tier, content)
        except (StoreFullError, OSError) as error:  # it lies in a slower one
            log.debug("the %s tier has no copy of %s: %s", tier.name, content.key.file_name, error)

    def _copy_later(self, tier: Tier, content: PassageKVContent) -> None:
        name = content.key.file_name
        self._behind.submit(f"{name} is not copied to the {tier.name} tier", lambda: self._put(tier, content))
