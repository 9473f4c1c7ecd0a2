"""What an integration's users leave to the environment: `KVBLEND_URL` and `KVBLEND_API_KEY`."""

from pydantic import SecretStr

from kvblend.core.settings import Settings
from kvblend.sdk.default_url import DEFAULT_URL

__all__ = ["api_key_of_environment", "url_of_environment"]


def url_of_environment() -> str:
    """Where the service is."""
    return Settings().url or DEFAULT_URL


def api_key_of_environment() -> SecretStr | None:
    """Its API key, if it has one."""
    key = Settings().api_key
    return None if key is None else SecretStr(key)
