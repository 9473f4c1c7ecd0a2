"""A trace of real requests, replayed on the service's own planner, counters and eviction: what a store holds."""

from kvblend.eval.replay.corpus import ReplayCorpus, ReplayPassage, folder_corpus, library_path, trace_corpus
from kvblend.eval.replay.replay import Replay, ReplaySettings, Served
from kvblend.eval.replay.shares import Ratios, replay_rows, setting_fields, steady_part

__all__ = [
    "Ratios",
    "Replay",
    "ReplayCorpus",
    "ReplayPassage",
    "ReplaySettings",
    "Served",
    "folder_corpus",
    "library_path",
    "replay_rows",
    "setting_fields",
    "steady_part",
    "trace_corpus",
]
