"""The vLLM server that is calibrated, wherever it runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from kvblend.core.settings import Settings

__all__ = ["CalibratedEngine", "EngineFor"]


@dataclass(frozen=True)
class CalibratedEngine:
    """Where it answers, its control channel, and settings that name its store."""

    url: str
    control: str
    settings: Settings


EngineFor = Callable[[int], AbstractContextManager[CalibratedEngine]]
"""From the tokens that the longest prompt and answer, or passage behind its encode context, take to the engine."""
