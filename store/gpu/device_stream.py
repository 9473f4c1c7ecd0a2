"""Copies beside a device's computation, and what waits for what. On a CPU a copy is done when it returns."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvblend.core.errors import InvalidRequestError

__all__ = ["DeviceEvent", "SideStream", "current_event", "has_passed", "make_current_wait"]

DeviceEvent = torch.cuda.Event | None
"""A point in a stream's work; None is one that has passed."""


class SideStream:
    """A stream of `device` beside those that its threads compute on. Raises InvalidRequestError for other devices.

    `device` is that of the stream: with its index, where the one given has none.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type not in ("cpu", "cuda"):
            raise InvalidRequestError(f"passage KV cannot be kept on {device}: only on cuda and cpu", param="device")
        self._stream: torch.cuda.Stream | None = None
        self.device = device
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.device = self._stream.device

    def bind_thread(self) -> None:
        """Make the stream's device the current one of a thread of ours."""
        if self._stream is not None:
            torch.cuda.set_device(self.device)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Issue the block's work on this stream."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def wait_for_current(self) -> None:
        """Let what is issued here from now on wait for all that this thread's current stream was given."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def wait_for(self, event: DeviceEvent) -> None:
        if self._stream is not None and event is not None:
            self._stream.wait_event(event)

    def event(self) -> DeviceEvent:
        """The point after all that was issued here."""
        return None if self._stream is None else _recorded(self._stream)


def current_event(device: torch.device) -> DeviceEvent:
    """The point after all that this thread's current stream was given."""
    return _recorded(torch.cuda.current_stream(device)) if device.type == "cuda" else None


def make_current_wait(device: torch.device, event: DeviceEvent) -> None:
    """Let this thread's current stream wait for `event`; the thread itself goes on."""
    if event is not None:
        torch.cuda.current_stream(device).wait_event(event)


def has_passed(event: DeviceEvent) -> bool:
    return event is None or bool(event.query())  # type: ignore[no-untyped-call]


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # a thread that waits for it sleeps
    event.record(stream)
    return event
