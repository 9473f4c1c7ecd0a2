"""Ranks where there is one."""

from kvblend.vllm_connector.engine.ranks import Ranks

__all__ = ["OneRank"]


class OneRank(Ranks):
    """Asks nobody."""

    def __init__(self) -> None:
        self._group = None
