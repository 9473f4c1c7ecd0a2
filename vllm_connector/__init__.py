"""KVBlendConnector for vLLM V1: non-prefix reuse of passage KV in stock vLLM."""
