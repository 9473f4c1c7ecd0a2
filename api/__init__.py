"""The REST service: collections, documents, retrieval, blended answers, and OpenAI's routes in front of vLLM."""

from kvblend.api.app import create_app
from kvblend.api.service import ServiceConfig

__all__ = ["ServiceConfig", "create_app"]
