"""The lab: one model, prompts by full prefill and by every method, and rows of how far they are apart."""
