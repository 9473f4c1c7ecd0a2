"""A GPU as far as the order of its work goes: streams that run whenever they like, and as late as they may.

Under `simulated_cuda` the store's CUDA path runs on a machine without one. Device memory is host memory. What is copied
to or from it without blocking is queued on a stream, and runs only when somebody waits for it, asks for it or luck has
it, in an order drawn from all that events allow. So whatever does not wait for what it needs reads or writes too early.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

DEVICE = torch.device("cuda", 0)


class Event:
    """Like torch.cuda.Event: to wait for it is to wait for its latest record, if there is one."""

    machine: "Machine"

    def __init__(self, *, blocking: bool = False) -> None:
        self.latest = threading.Event()
        self.is_recorded = False

    def record(self, stream: "Stream") -> None:
        self.latest, self.is_recorded = threading.Event(), True
        stream.issue(self.latest.set)

    def query(self) -> bool:
        return self.machine.has_passed(self)

    def synchronize(self) -> None:
        self.machine.run_until(self.latest.is_set)


class Stream:
    machine: "Machine"
    device = DEVICE

    def __init__(self, device: torch.device | None = None) -> None:
        self.queue: deque[Callable[[], bool]] = deque()
        """Each returns whether it could run yet."""
        self.machine.streams.append(self)

    def issue(self, work: Callable[[], Any]) -> None:
        def run() -> bool:
            work()
            return True

        self.queue.append(run)

    def wait_event(self, event: Event) -> None:
        if event.is_recorded:
            self.queue.append(event.latest.is_set)

    def wait_stream(self, other: "Stream") -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)


class Machine:
    def __init__(self, seed: int) -> None:
        self.lock = threading.RLock()
        self.luck = random.Random(seed)
        self.streams: list[Stream] = []
        self.blocks: list[tuple[int, int]] = []  # device memory, as [start, end) addresses
        self.free: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] = []
        self.threads = threading.local()
        Event.machine = Stream.machine = self
        self.default = Stream()

    def step(self) -> bool:
        """Run the next thing of some stream; False where none can."""
        with self.lock:
            ready = [stream for stream in self.streams if stream.queue]
            self.luck.shuffle(ready)
            for stream in ready:
                with torch.inference_mode():  # whichever thread this is
                    has_run = stream.queue[0]()
                if has_run:
                    stream.queue.popleft()
                    return True
        return False

    def run_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            with self.lock:
                assert is_over() or self.step(), "every stream waits for what nobody has recorded"

    def has_passed(self, event: Event) -> bool:
        if self.luck.random() < 0.3:
            self.step()
        return event.latest.is_set()

    @property
    def current(self) -> Stream:
        return getattr(self.threads, "stream", self.default)

    def finish(self) -> None:
        """Wait for every stream."""
        self.run_until(lambda: not any(stream.queue for stream in self.streams))

    def synchronize(self) -> None:
        """Wait for the current stream."""
        event = Event()
        event.record(self.current)
        event.synchronize()

    def is_device(self, tensor: torch.Tensor) -> bool:
        return any(start <= tensor.data_ptr() < end for start, end in self.blocks)


@contextmanager
def simulated_cuda(patch: pytest.MonkeyPatch, *, seed: int) -> Iterator[Machine]:
    machine = Machine(seed)
    empty, copy, zero, cpu = torch.empty, torch.Tensor.copy_, torch.Tensor.zero_, torch.Tensor.cpu

    def empty_(*shape: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "cuda":
            return empty(*shape, device=device, **options)
        memory = empty(*shape, **options)
        with machine.lock:
            for freed in machine.free:  # the last given back is the first to be used again, as an allocator does
                if freed.numel() == memory.numel() and freed.dtype == memory.dtype:
                    machine.free.remove(freed)
                    return freed.view(memory.shape)
            machine.kept.append(memory)
            machine.blocks.append((memory.data_ptr(), memory.data_ptr() + memory.nbytes))
        return memory

    def copy_(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if not machine.is_device(target) and not machine.is_device(source):
            return copy(target, source)
        machine.current.issue(lambda: copy(target, source))
        if not non_blocking:
            machine.synchronize()
        return target

    def zero_(target: torch.Tensor) -> torch.Tensor:
        if not machine.is_device(target):
            return zero(target)
        machine.current.issue(lambda: zero(target))
        return target

    def cpu_(tensor: torch.Tensor) -> torch.Tensor:
        if not machine.is_device(tensor):
            return cpu(tensor)
        machine.synchronize()
        return tensor.clone()

    @contextmanager
    def use(stream: Stream) -> Iterator[None]:
        before = machine.current
        machine.threads.stream = stream
        yield
        machine.threads.stream = before

    patch.setattr(torch, "empty", empty_)
    patch.setattr(torch.Tensor, "copy_", copy_)
    patch.setattr(torch.Tensor, "zero_", zero_)
    patch.setattr(torch.Tensor, "cpu", cpu_)
    patch.setattr(torch.cuda, "Stream", Stream)
    patch.setattr(torch.cuda, "Event", Event)
    patch.setattr(torch.cuda, "current_stream", lambda device: machine.current)
    patch.setattr(torch.cuda, "set_device", lambda device: None)
    patch.setattr(torch.cuda, "stream", use)
    yield machine
    machine.finish()
