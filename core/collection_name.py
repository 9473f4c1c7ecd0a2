"""A collection's name in the catalog, where each tenant has names of its own."""

from typing import Annotated

from pydantic import StringConstraints

__all__ = ["DEFAULT_TENANT", "TenantName", "collection_key", "name_in_tenant", "tenant_of"]

DEFAULT_TENANT = "default"
"""Whose names stand in the catalog as they are."""

TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,31}$")]


def collection_key(tenant: str, name: str) -> str:
    """What the catalog calls a tenant's collection: `<tenant>/<name>`."""
    return name if tenant == DEFAULT_TENANT else f"{tenant}/{name}"


def tenant_of(key: str) -> str:
    """Whose collection it is."""
    tenant, slash, _ = key.partition("/")
    return tenant if slash else DEFAULT_TENANT


def name_in_tenant(key: str) -> str:
    """What the tenant calls it."""
    return key.rpartition("/")[2]
