"""vLLM's servers: their HTTP and control channels, the choice among them, and answers from them."""
