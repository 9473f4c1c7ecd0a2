"""What the integrations of LangChain, LlamaIndex and Haystack share."""
