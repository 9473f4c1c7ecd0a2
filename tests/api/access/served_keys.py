"""A key file for tests of the service: two tenants, and a key of each role."""

from pathlib import Path

import httpx

__all__ = ["KEYS", "client_of", "key_of", "write_keys"]

KEYS = {
    "ops": ("default", "admin"),
    "acme-admin": ("acme", "admin"),
    "acme-ingest": ("acme", "ingest"),
    "acme-query": ("acme", "query"),
    "beta-admin": ("beta", "admin"),
}
"""Tenant and role by name."""


def key_of(name: str) -> str:
    """The key of this name."""
    return f"the test's own key of {name}"


def write_keys(path: Path, tenants: str = "{}") -> Path:
    """Write them all to a file; `tenants` is the YAML of what tenants may take."""
    entries = [
        f'  - {{name: {name}, tenant: {tenant}, role: {role}, key: "{key_of(name)}"}}'
        for name, (tenant, role) in KEYS.items()
    ]
    path.write_text("\n".join(["keys:", *entries, f"tenants: {tenants}", ""]))
    return path


def client_of(url: str, name: str) -> httpx.Client:
    """A client with this key."""
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key_of(name)}"}, timeout=60)
