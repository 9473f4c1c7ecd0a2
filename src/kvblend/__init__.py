"""Fuse precomputed passage KV caches into one vLLM context: full prefill's answer, sooner."""

__version__ = "0.1.0"
