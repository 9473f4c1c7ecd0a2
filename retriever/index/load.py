"""What the files of an index hold that is sound."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from kvblend.retriever.index.clusters import Clusters
from kvblend.retriever.index.manifest import NAME, load_manifest
from kvblend.retriever.index.part import ERASED, Part
from kvblend.retriever.index.snapshot import PartView, Snapshot

__all__ = ["CHECKED_AT_OPEN", "OWNER_FILE", "load_snapshot"]

CHECKED_AT_OPEN = 65536
"""Slots of a part that is checked whole before it is used; a larger one is checked beside the first queries."""
OWNER_FILE = "owner"
"""Locked by whichever process keeps the files."""

logger = logging.getLogger(__name__)


def load_snapshot(folder: Path, collection_key: int, *, owned: bool) -> Snapshot:
    """Open the parts that are named, without slots that are damaged; of no version where anything is.

    `owned`: the files are this process's to write, and what no part names is deleted.
    """
    names = load_manifest(folder, collection_key)
    views: list[PartView] = []
    whole = True
    version: bytes | None = None
    for number, name in enumerate(names):
        try:
            part = Part.open(folder / name, writable=owned)
        except (OSError, ValueError) as error:
            logger.warning("an index part is made up from the catalog: %s", error)
            whole = False
            continue
        count = part.capacity
        if number == len(names) - 1:
            version, count = part.committed() or (None, 0)
        view = PartView(part, count, Clusters.load((folder / name).with_suffix(".clusters")))
        if count <= CHECKED_AT_OPEN:
            sound = part.sound(0, count)
            whole = whole and bool(np.all(sound | (part.rows[:count] == ERASED)))
        else:
            sound = part.rows[:count] > 0
        views.append(view if sound.all() else view.without(np.flatnonzero(~sound)))
    if owned:
        kept = {name.rpartition(".")[0] for name in names}
        for path in folder.iterdir():
            if path.stem not in kept and path.name not in (NAME, OWNER_FILE):
                path.unlink()
    else:  # what grows is the owner's: it goes on in the same slots
        views = [view if view.is_full else replace(view, part=_copy(view)) for view in views]
    return Snapshot(version if whole else None, tuple(views))


def _copy(view: PartView) -> Part:
    """Of a part that another process goes on to fill, a full copy in memory of what is there."""
    part = Part.create(None, capacity=max(1, view.count), dim=view.part.dim)
    part.put(0, view.part.rows[: view.count], view.part.vectors[: view.count])
    return part
