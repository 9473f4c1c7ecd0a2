"""NIXL: memory that a peer lends, and the reading of it.

An agent is driven by whoever calls it, and holds Python's lock while it works: it runs in a host's peer process, never
in an engine's. NIXL's own progress thread would keep a core busy for as long as the process lives.
"""

import base64
import os
import secrets
from importlib.util import find_spec
from typing import Any, Literal

from kvblend.core.errors import InvalidRequestError
from kvblend.store.peers.ring import Ring

__all__ = ["MemoryLender", "MemoryReader", "preload", "require_nixl"]

PACKAGE = "nixl_cu12"


def require_nixl() -> None:
    """Raise InvalidRequestError unless NIXL can be used here."""
    if find_spec(PACKAGE) is None:
        raise InvalidRequestError(
            "peers need the package 'nixl-cu12': install kvblend[nixl]; there are wheels for Linux",
            param="KVBLEND_REMOTE",
        )


def preload() -> None:
    """Load NIXL's plugins, which takes half a second once. Raises OSError where they cannot be."""
    try:
        _agent()
    except Exception as error:
        raise OSError(f"NIXL cannot be used: {_reason(error)}") from error


class MemoryLender:
    """Lets peers read a ring, which must outlive it, while `progress` is called again and again."""

    def __init__(self, ring: Ring) -> None:
        self._agent = _agent()
        self._registered = self._agent.register_memory([(ring.address, ring.num_bytes, 0, "")], "DRAM")
        self.metadata: str = base64.b64encode(self._agent.get_agent_metadata()).decode()

    def progress(self) -> None:
        """Answer what peers ask for now."""
        self._agent.get_new_notifs()


class MemoryReader:
    """Reads one peer's memory into a ring, which must outlive it. Everything raises OSError where the peer is gone.

    A read that was begun may write to the ring at any time, even one that was released, until it is done or the reader
    is closed. Nothing writes any more once `close` returns.
    """

    def __init__(self, ring: Ring, metadata: str) -> None:
        self._ring, self._reads = ring, dict[int, Any]()
        self._agent: Any = None
        self._registered: Any = None
        reason = None
        try:
            self._agent = _agent()
            self._registered = self._agent.register_memory([(ring.address, ring.num_bytes, 0, "")], "DRAM")
            self._peer: str = self._agent.add_remote_agent(base64.b64decode(metadata))
        except Exception as error:
            reason = _reason(error)
        if reason is not None:
            self.close()
            raise OSError(reason)

    def begin(self, start: int, address: int, num_bytes: int) -> int:
        """Begin to read what lies at a peer's `address` to `start` of the ring; returns the read's number."""
        agent, reason = self._open_agent(), None
        try:
            read = agent.initialize_xfer(
                "READ",
                agent.get_xfer_descs([(self._ring.address + start, num_bytes, 0)], "DRAM"),
                agent.get_xfer_descs([(address, num_bytes, 0)], "DRAM"),
                self._peer,
            )
            self._reads[start] = read
            if agent.transfer(read) == "ERR":
                reason = "the read was not begun"
        except Exception as error:
            reason = _reason(error)
        if reason is not None:  # raised here: a traceback into NIXL would keep the agent from being destroyed
            raise OSError(reason)
        return start

    def is_done(self, number: int) -> bool:
        """Whether a read has ended; it is forgotten then."""
        agent, reason = self._open_agent(), None
        state: Literal["DONE", "PROC", "ERR"] = "ERR"
        try:
            state = agent.check_xfer_state(self._reads[number])
            if state == "DONE":
                self._reads.pop(number).release()
        except Exception as error:
            reason = _reason(error)
        if state == "ERR":
            raise OSError(reason or "the read failed")
        return state == "DONE"

    def close(self) -> None:
        """Destroy the agent. Idempotent."""
        self._reads.clear()
        self._registered = self._agent = None

    def _open_agent(self) -> Any:
        if self._agent is None:
            raise OSError("the connection was closed")
        return self._agent


def _agent() -> Any:
    os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")  # a peer that is gone is ours to report, once
    os.environ.setdefault("UCX_LOG_LEVEL", "fatal")
    from nixl_cu12._api import nixl_agent, nixl_agent_config

    return nixl_agent(f"kvblend-{secrets.token_hex(8)}", nixl_agent_config(enable_prog_thread=False))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
