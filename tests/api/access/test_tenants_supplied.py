"""The KV of what a tenant's callers supply is the tenant's: counted, within its quota, and gone when the tenant is."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvblend.sdk import Client
from kvblend.store import DiskTier, TieredStore
from tests.api.access.served_keys import KEYS, client_of, key_of, write_keys
from tests.api.kv.test_kv_control import eventually
from tests.api.scripted_service import ScriptedService, scripted_service
from tests.api.stored_encode import store_encode

TEXT = "The report is signed by the head of the department, who may pass it on to her deputy in her absence. "


@contextmanager
def served(folder: Path, **options: Any) -> Iterator[tuple[ScriptedService, TieredStore]]:
    """A service whose engine stores what it encodes, and its store."""
    with TieredStore([DiskTier(folder / "home" / "kv", budget_bytes=1 << 30)]) as store:
        encode = {"encode": lambda prompt, order: store_encode(store, prompt, order)}
        with scripted_service(folder, **encode, **options) as service:  # type: ignore[arg-type]
            yield service, store


@pytest.fixture
def options(demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> dict[str, Any]:
    keys = write_keys(tmp_path / "keys.yaml")
    return {"model": demo_model_path, "embedding_model": embedding_model_path, "keys": keys}


def ask(service: ScriptedService, name: str, **choices: Any) -> None:
    """Have a passage of a caller's own encoded, and what stands in front of it."""
    body = {"messages": [{"role": "user", "content": "?"}], "kvblend": {"documents": [TEXT * 3], **choices}}
    with client_of(service.url, name) as client:
        client.post("/v1/chat/completions", json=body).raise_for_status()


def owners(store: TieredStore) -> list[str]:
    """Whose each file is, without the service's name."""
    return sorted(entry.owner.partition("/")[2] for tier in store.bounded for entry in tier.all_entries())


def used_bytes(service: ScriptedService, name: str) -> int:
    with Client(service.url, api_key=key_of(name)) as client:
        return sum(tier.used_bytes for tier in client.kv_stats().tiers)


def test_what_a_caller_supplies_counts_as_its_tenants(options: dict[str, Any], tmp_path: Path) -> None:
    """The passage and the preamble, of either tenant; what the default tenant's callers supply stays nobody's."""
    with served(tmp_path, **options) as (service, store):
        for name in ("acme-query", "beta-admin", "ops"):
            ask(service, name)
        eventually(lambda: owners(store) == ["", "", "acme/", "acme/", "beta/", "beta/"])
        everything = used_bytes(service, "ops")
        assert used_bytes(service, "acme-admin") == used_bytes(service, "beta-admin") == everything / 3
        with client_of(service.url, "ops") as client:
            told = re.findall(r'kvblend_tenant_kv_bytes\{tenant="(\w+)",.*\} (\S+)', client.get("/metrics").text)
        assert {(tenant, float(value)) for tenant, value in told} == {
            ("acme", everything / 3),
            ("beta", everything / 3),
        }


def test_a_collections_preamble_is_its_tenants(options: dict[str, Any], tmp_path: Path) -> None:
    """Passages beside it, which the collection does not hold, are the tenant's; its documents' are the collection's."""
    with served(tmp_path, **options) as (service, store):
        with Client(service.url, api_key=key_of("acme-admin")) as client:
            client.create_collection("docs", passage_tokens=64, preamble="Speak of reports.")
            client.wait(client.add_document("docs", "The deputy signs the minutes."))
        assert owners(store) == ["acme/", "acme/docs"]
        ask(service, "acme-query", collection="docs")
        eventually(lambda: owners(store) == ["acme/", "acme/", "acme/docs"])


def test_a_tenants_quota_holds_what_it_supplies(options: dict[str, Any], tmp_path: Path) -> None:
    write_keys(options["keys"], "{acme: {kv_quota_bytes: 1}}")
    with served(tmp_path, **options) as (service, store):
        ask(service, "ops")
        ask(service, "beta-admin")
        eventually(lambda: owners(store) == ["", "", "beta/", "beta/"])
        ask(service, "acme-query")
        eventually(lambda: "acme/" in owners(store))
        eventually(lambda: "acme/" not in owners(store))
        assert owners(store) == ["", "", "beta/", "beta/"]


def test_what_a_tenant_supplied_is_swept_when_it_has_no_key_any_more(options: dict[str, Any], tmp_path: Path) -> None:
    keys: Path = options["keys"]
    with served(tmp_path, **options) as (service, store), Client(service.url, api_key=key_of("ops")) as client:
        for name in ("acme-query", "beta-admin", "ops"):
            ask(service, name)
        eventually(lambda: len(owners(store)) == 6)
        assert client.kv_sweep() == 0
        lines = keys.read_text().splitlines()
        assert sum("tenant: acme" in line for line in lines) == sum(tenant == "acme" for tenant, _ in KEYS.values())
        keys.write_text("\n".join(line for line in lines if "tenant: acme" not in line))
        eventually(lambda: client.kv_sweep() == 2)
        assert owners(store) == ["", "", "beta/", "beta/"]
