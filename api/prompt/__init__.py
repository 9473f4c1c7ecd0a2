"""A prompt's way to vLLM: its passages found, put in order, laid out, planned."""
