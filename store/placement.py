"""Which tiers this machine and its settings allow."""

import logging
import os
from pathlib import Path

from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings
from kvblend.store.eviction import policy_of
from kvblend.store.folder.cpu_tier import CPUTier
from kvblend.store.folder.disk_tier import DiskTier
from kvblend.store.folder.folder_scan import scan
from kvblend.store.tier import BoundedTier

__all__ = ["tiers_of"]

log = logging.getLogger(__name__)

LEAST_CPU_BYTES = 128 << 20
"""With less room on its file system than this and than its budget, the CPU tier is not worth having: a
container's default /dev/shm has 64 MB."""


def tiers_of(settings: Settings) -> list[BoundedTier]:
    """Open the tiers that `settings` ask for and the file systems have room for, fastest first.

    Raises InvalidRequestError where a path is relative, cannot be written or lies within the other tier's,
    or where no tier is left.
    """
    cpu_path, disk_path = settings.cpu_path.expanduser(), settings.disk_tier_path
    cpu_bytes = settings.cpu_bytes
    if settings.cpu_bytes == 0 and settings.disk_bytes == 0:
        raise InvalidRequestError("KVBLEND_CPU_BYTES and KVBLEND_DISK_BYTES are both 0; a store needs one tier")
    for name, path, num_bytes in (
        ("KVBLEND_CPU_PATH", cpu_path, settings.cpu_bytes),
        ("KVBLEND_DISK_PATH", disk_path, settings.disk_bytes),
    ):
        if num_bytes and not path.is_absolute():
            raise InvalidRequestError(f"{name} is {str(path)!r}, a relative path; it must be absolute", param=name)
    if cpu_bytes and settings.disk_bytes:
        _check_apart(cpu_path, disk_path)
    tiers: list[BoundedTier] = []
    policy = policy_of(settings.eviction)
    if cpu_bytes:
        cpu_bytes = _bounded_by_room(cpu_path, cpu_bytes)
    if cpu_bytes:
        tiers.append(CPUTier(cpu_path, budget_bytes=cpu_bytes, policy=policy))
    if settings.disk_bytes:
        tiers.append(DiskTier(disk_path, budget_bytes=settings.disk_bytes, policy=policy))
    if not tiers:
        raise InvalidRequestError(
            f"{cpu_path} has no room for a CPU tier and KVBLEND_DISK_BYTES is 0; a store needs one tier"
        )
    return tiers


def _check_apart(cpu_path: Path, disk_path: Path) -> None:
    cpu, disk = cpu_path.resolve(), disk_path.resolve()
    if cpu.is_relative_to(disk) or disk.is_relative_to(cpu):
        raise InvalidRequestError(
            f"KVBLEND_CPU_PATH {str(cpu_path)!r} and the disk tier's path {str(disk_path)!r} lie within each other",
            param="KVBLEND_CPU_PATH",
        )


def _bounded_by_room(path: Path, budget_bytes: int) -> int:
    """The smaller of the budget and what the file system can take, our own files included; 0 if that is too little."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    status = os.statvfs(existing)
    room = status.f_bavail * status.f_frsize + sum(file.num_bytes for file in scan(path))
    if room < min(budget_bytes, LEAST_CPU_BYTES):
        log.warning(
            "the CPU tier is off: its file system at %s has room for %d bytes, not the %d of KVBLEND_CPU_BYTES; "
            "give the container a larger /dev/shm (docker run --shm-size)",
            path,
            room,
            budget_bytes,
        )
        return 0
    if room < budget_bytes:
        log.warning("the CPU tier's budget is %d bytes, all the room at %s, not %d", room, path, budget_bytes)
    return min(room, budget_bytes)
