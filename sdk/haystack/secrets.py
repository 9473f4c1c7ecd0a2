"""The service's API key, as Haystack's components hold one."""

from haystack.utils import Secret

__all__ = ["KEY_OF_ENVIRONMENT"]

KEY_OF_ENVIRONMENT = Secret.from_env_var("KVBLEND_API_KEY", strict=False)
"""Read when it is used; a pipeline that is written down names the variable alone."""
