"""What sets a tenant's passage KV and prefix cache apart from all others'."""

import hashlib
import hmac
import secrets

from kvblend.core.collection_name import DEFAULT_TENANT
from kvblend.retriever import Catalog

__all__ = ["TenantSalts"]

SECRET = "tenant_secret"


class TenantSalts:
    """Salts that nobody can guess, made of the tenant's name and a secret of the catalog.

    The default tenant has none, and where tenants share, nobody has one.
    """

    def __init__(self, catalog: Catalog, *, share: bool = False) -> None:
        """It reads a file: call it in a thread, or at start."""
        stored = catalog.get_value(SECRET)
        if stored is None:
            stored = secrets.token_hex(32)
            catalog.put_value(SECRET, stored)
        self._secret, self._share = bytes.fromhex(stored), share

    def of(self, tenant: str) -> str | None:
        """64 hex digits; None where the tenant has no salt."""
        if self._share or tenant == DEFAULT_TENANT:
            return None
        return hmac.digest(self._secret, tenant.encode(), hashlib.sha256).hex()
