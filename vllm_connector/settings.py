"""The connector's settings: the environment's, overridden by `kv_connector_extra_config`."""

from typing import Any

from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings

__all__ = ["connector_settings"]


def connector_settings(extra_config: dict[str, Any]) -> Settings:
    """Settings, `extra_config`'s fields before the environment's. Raises InvalidRequestError on an unknown field."""
    unknown = sorted(set(extra_config) - set(Settings.model_fields))
    if unknown:
        known = ", ".join(sorted(Settings.model_fields))
        raise InvalidRequestError(f"kv_connector_extra_config has no setting {unknown[0]!r}; settings are {known}")
    return Settings(**extra_config)
