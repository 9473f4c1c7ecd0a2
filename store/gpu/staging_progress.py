"""How far a staging has come: between the thread that issues its copies and the one that uses what they bring."""

import threading

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.gpu.device_stream import DeviceEvent

__all__ = ["StagingProgress"]


class StagingProgress:
    """Layers whose copies are all issued, in order; layers that are used up; passages that failed, by their place."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._copied: list[DeviceEvent] = []
        self._num_used = 0
        self._used: DeviceEvent = None
        self._failed: dict[int, CorruptPassageKVError] = {}
        self._last: DeviceEvent = None
        self._broken: Exception | None = None
        self._is_closed = False
        self._has_ended = False

    @property
    def failed(self) -> dict[int, CorruptPassageKVError]:
        with self._changed:
            return dict(self._failed)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def add_layer(self, copied: DeviceEvent) -> None:
        """The next layer's copies are issued; it is there once `copied` has passed."""
        with self._changed:
            self._copied.append(copied)
            self._changed.notify_all()

    def fail(self, place: int, error: CorruptPassageKVError) -> None:
        """Note what was wrong with a passage, before the layer that it was found in is added."""
        with self._changed:
            self._failed.setdefault(place, error)

    def end(self, last: DeviceEvent, *, broken: Exception | None = None) -> None:
        """Nothing more will be read or issued; `broken` is what ended it early, if no close did."""
        with self._changed:
            self._last, self._broken, self._has_ended = last, broken, True
            self._changed.notify_all()

    def use_up(self, num_layers: int, used: DeviceEvent) -> int:
        """Of the first `num_layers` layers every use is issued, and over once `used` has passed; returns how many are.

        That is more where more were used up before.
        """
        with self._changed:
            if num_layers > self._num_used:
                self._num_used, self._used = num_layers, used
                self._changed.notify_all()
            return self._num_used

    def close(self) -> None:
        """Nothing more is wanted."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait_for_layer(self, layer: int) -> tuple[DeviceEvent, frozenset[int]]:
        """Wait until a layer is added; returns when it is there, and who failed so far. Raises what broke it off."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._copied) > layer or self._has_ended)
            if len(self._copied) > layer:
                return self._copied[layer], frozenset(self._failed)
            assert self._broken is not None, "the staging was closed"
            raise self._broken

    def wait_for_use(self, num_layers: int) -> DeviceEvent:
        """Wait until so many layers are used up, or nothing more is wanted; returns when their uses are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_used >= num_layers or self._is_closed)
            return self._used

    def wait_for_end(self) -> DeviceEvent:
        """Wait until nothing more will be read or issued; returns the point after the last copy."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended)
            return self._last
