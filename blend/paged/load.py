"""Bring passage KV into the paged blocks of the contexts that reuse it, whole or as layers arrive."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvblend.blend.paged.caches import LayerRun
from kvblend.blend.paged.context import PagedContextKV
from kvblend.blend.rotary import RotaryTable
from kvblend.triton_kernels import LoadPlan, StagedPassage
from kvblend.triton_kernels.launch import to_device

__all__ = ["PassageLoad", "PlacedPassage"]


@dataclass(frozen=True)
class PlacedPassage:
    """A staged passage KV and where it goes: its token i becomes the context's token `start + i`.

    `delta`: `start` less the position of token 0 when the KV was captured. `skipped`: how many of its first tokens the
    context has already (an exact local hit) or has no place for: `start` may be below 0 by as many. `left_out`: how
    many of its last tokens it has no place for. `ready(layer)` returns when the current stream waits for the layer, or
    when the layer is there; by default all layers are. `num_rows`: how many layers `staged` holds at a time, layer l in
    row `l % num_rows`, where it is a window through which they come; None: it holds all.
    """

    staged: StagedPassage
    context: PagedContextKV
    start: int
    delta: int
    skipped: int = 0
    left_out: int = 0
    ready: Callable[[int], object] | None = None
    num_rows: int | None = None


class PassageLoad:
    """A load of passages of one or more contexts over the same caches, layer by layer or whole.

    Codecs may differ. Addresses and slots go to the device on construction; loading copies nothing there.
    Raises ValueError where a passage has other layers, heads or tokens than the context has room for, or would turn
    further than a rotary table reaches.
    """

    def __init__(self, passages: Sequence[PlacedPassage]) -> None:
        self._passages = passages
        self._steps: list[list[tuple[LoadPlan, int]]] = []
        self._plans: list[LoadPlan] = []
        if not passages:
            return
        caches = passages[0].context.caches
        for index, passage in enumerate(passages):
            if passage.context.caches is not caches:
                raise ValueError(f"passage {index} goes to other caches than passage 0")
            end = passage.start + passage.staged.num_tokens - passage.left_out
            if passage.start + passage.skipped < 0 or end > passage.context.num_tokens:
                raise ValueError(
                    f"passage {index} goes to tokens {passage.start + passage.skipped} to {end}; its context has "
                    f"{passage.context.num_tokens}"
                )
        self._steps = [[] for _ in caches.layers]
        alike: dict[object, list[PlacedPassage]] = {}
        for passage in passages:
            kind = (passage.staged.codec, passage.staged.payload.dtype, passage.num_rows)
            alike.setdefault(kind, []).append(passage)
        for run in caches.runs:
            for batch in alike.values():
                plan = _plan(batch, run, caches.device)
                self._plans.append(plan)
                for place, layer in enumerate(run.layers):
                    self._steps[layer].append((plan, place))

    def layer(self, layer: int) -> None:
        """Load one layer of every passage, behind its arrival."""
        if not self._passages:
            return
        self._wait(layer)
        for plan, place in self._steps[layer]:
            plan.run(place)

    def all_layers(self) -> None:
        """Load everything in as few launches as layouts, rotary tables and codecs allow.

        What is not there whole comes layer by layer.
        """
        if any(passage.num_rows is not None for passage in self._passages):
            for layer in range(len(self._steps)):
                self.layer(layer)
            return
        for layer in range(len(self._steps)):
            self._wait(layer)
        for plan in self._plans:
            plan.run()

    def _wait(self, layer: int) -> None:
        for passage in self._passages:
            if passage.ready is not None:
                passage.ready(layer)


def _plan(passages: Sequence[PlacedPassage], run: LayerRun, device: torch.device) -> LoadPlan:
    slots, deltas = [], []
    num_rows = passages[0].num_rows
    table = _still_table(device) if run.table is None else run.table
    for passage in passages:
        count, delta = passage.staged.num_tokens, 0 if run.table is None else passage.delta
        if abs(delta) >= len(table.cos):
            raise ValueError(f"a passage moves by {delta} positions; the rotary table reaches {len(table.cos) - 1}")
        own = torch.full((count,), -1)
        stop = count - passage.left_out
        kept = torch.arange(min(passage.skipped, stop), stop)
        own[kept] = passage.context.slots(run.group, passage.start + kept)
        slots.append(own)
        deltas.append(torch.full((count,), delta))
    return LoadPlan.of(
        [passage.staged for passage in passages],
        run.caches,
        to_device(torch.cat(slots), device),
        to_device(torch.cat(deltas), device),
        table.cos,
        table.sin,
        interleaved=table.interleaved,
        source_layers=run.layers if num_rows is None else [layer % num_rows for layer in run.layers],
    )


def _still_table(device: torch.device) -> RotaryTable:
    """Turns nothing: of layers whose keys carry no position."""
    return RotaryTable(torch.ones(1, 1, device=device), torch.zeros(1, 1, device=device), interleaved=False)
