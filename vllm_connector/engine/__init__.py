"""vLLM's model and paged caches as blending needs them, on a GPU and on a CPU."""
