"""Whose passage KV is, as the headers of its files say it, in a store that other services use too."""

from dataclasses import dataclass

from kvblend.core.collection_name import DEFAULT_TENANT, collection_key, tenant_of

__all__ = ["KVOwners"]


@dataclass(frozen=True)
class KVOwners:
    """Owners of one service.

    <service id>/<collection>               its documents' passages, of the default tenant
    <service id>/<tenant>/<collection>      of any other tenant
    <service id>/<tenant>/                  what no collection holds: preambles, and what a tenant's callers supply

    What no collection of the default tenant holds is nobody's.
    """

    service_id: str

    def of_collection(self, name: str) -> str:
        """Of the passages of a collection, by what the catalog calls it."""
        return f"{self.service_id}/{name}"

    def of_tenant(self, tenant: str) -> str | None:
        """Of what a tenant has beside its collections; None is nobody."""
        return None if tenant == DEFAULT_TENANT else self.of_collection(collection_key(tenant, ""))

    def tenant(self, owner: str) -> str | None:
        """Whose an owner is; None where it is another service's, or nobody."""
        service_id, slash, name = owner.partition("/")
        return tenant_of(name) if slash and service_id == self.service_id else None
