"""The key ring: who a key is, and what becomes of a file that changes or breaks."""

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest

from kvblend.api.access import key_file, key_ring
from kvblend.api.access.caller import Caller
from kvblend.api.access.key_ring import KeyRing
from kvblend.core.errors import InvalidRequestError, NotFoundError

OPS, APP = "the operator's own key", "the application's own key"
FILE = f"""
keys:
  - {{name: ops, role: admin, key: "{OPS}"}}
  - {{name: app, tenant: acme, role: query, sha256: {hashlib.sha256(APP.encode()).hexdigest()}}}
tenants:
  acme: {{requests_per_minute: 60, kv_quota_bytes: 1000}}
"""


def write(path: Path, text: str) -> Path:
    """Put it in place as one does with a file that is read: by a rename."""
    new = path.with_suffix(".new")
    new.write_text(text)
    return new.replace(path)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(key_ring, "LOOK_EVERY_S", 0.0)
    return write(tmp_path / "keys.yaml", FILE)


def test_a_key_is_its_tenants_and_roles(path: Path) -> None:
    ring = KeyRing(path)
    assert ring.find(OPS) == Caller("ops", "default", "admin")
    assert ring.find(APP) == Caller("app", "acme", "query")
    assert ring.limits("acme").requests_per_minute == 60
    assert ring.limits("acme").kv_quota_bytes == 1000
    assert ring.limits("default").requests_per_minute is None
    assert ring.tenants == ["acme", "default"]


@pytest.mark.parametrize("key", [None, "", "the operator's own", OPS + " ", OPS.upper(), "\udcff", "x" * 100_000])
def test_what_is_no_key_is_nobodys(path: Path, key: str | None) -> None:
    assert KeyRing(path).find(key) is None


def test_the_single_key_is_an_admins_beside_the_files(path: Path) -> None:
    ring = KeyRing(path, api_key="single")
    assert ring.find("single") == Caller("KVBLEND_API_KEY", "default", "admin")
    assert ring.find(APP) is not None
    assert KeyRing(None, api_key="single").find("other") is None


def test_without_keys_everybody_is_the_operator() -> None:
    found = KeyRing(None).find(None)
    assert found is not None and found.is_operator


def test_another_file_is_taken_without_a_restart(path: Path) -> None:
    ring = KeyRing(path)
    write(path, FILE.replace(OPS, "another key of the operator's"))
    assert ring.find(OPS) is None
    assert ring.find("another key of the operator's") is not None


@pytest.mark.parametrize("broken", ["keys: [", "keys: []", "", "- 1", None])
def test_a_broken_file_leaves_the_ring_and_says_so_once(
    path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    ring = KeyRing(path)
    if broken is None:
        path.unlink()
    else:
        write(path, broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert ring.find(OPS) is not None
    assert len(caplog.records) == 1
    write(path, FILE)
    assert ring.find(APP) is not None


def test_the_file_is_not_read_where_it_has_not_changed(path: Path) -> None:
    ring = KeyRing(path)
    before = path.stat()
    path.write_bytes(b"\0" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ring.find(OPS) is not None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("keys: [", "is not YAML at line"),
        ("keys: [{name: a, role: admin}]", "give one of key and sha256"),
        ("keys: [{name: a, role: admin, key: short}]", "at least 16 characters"),
        ("keys: [{name: a, role: owner, key: 0123456789abcdef}]", "keys.0.role"),
        ("keys: [{name: a, role: admin, tenant: A/b, key: 0123456789abcdef}]", "keys.0.tenant"),
        (
            "keys: [{name: a, role: query, key: 0123456789abcdef}, {name: a, role: query, key: 0123456789abcdeg}]",
            "name",
        ),
        ("keys: [{name: a, role: query, key: 0123456789abcdef}, {name: b, role: query, key: 0123456789abcdef}]", "key"),
        ("keys: [{name: a, role: query, key: 0123456789abcdef}]\ntenants: {x: {quota: 1}}", "tenants.x.quota"),
    ],
)
def test_a_file_that_is_wrong_at_start_is_refused_by_what_is_wrong_with_it(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as found:
        KeyRing(write(tmp_path / "keys.yaml", text))
    assert "0123456789abcdef" not in found.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        KeyRing(tmp_path / "none.yaml")


def test_ranks() -> None:
    assert Caller("k", "acme", "query").may("query") and not Caller("k", "acme", "query").may("ingest")
    assert Caller("k", "acme", "ingest").may("query") and not Caller("k", "acme", "ingest").may("admin")
    assert Caller("k", "acme", "admin").may("admin") and not Caller("k", "acme", "admin").may("operator")
    assert Caller("k", "default", "admin").may("operator") and not Caller("k", "default", "ingest").may("operator")


def test_each_tenant_has_names_of_its_own() -> None:
    assert Caller("k", "default", "query").collection("docs") == "docs"
    assert Caller("k", "acme", "query").collection("docs") == "acme/docs"
    assert Caller("k", "default", "admin").collection("acme/docs") == "acme/docs"
    for other in (Caller("k", "default", "query"), Caller("k", "acme", "admin"), Caller("k", "beta", "admin")):
        with pytest.raises(NotFoundError):
            other.collection("acme/docs")


JSON = json.dumps({"keys": [{"name": "ops", "role": "admin", "key": OPS}], "tenants": {"acme": {"max_jobs": 3}}})


@pytest.mark.parametrize("text", [FILE, JSON])
def test_keys_of_the_environment_are_as_a_files(text: str) -> None:
    ring = KeyRing(None, text=text, api_key="single")
    assert ring.find(OPS) == Caller("ops", "default", "admin")
    assert ring.find("single") == Caller("KVBLEND_API_KEY", "default", "admin")
    assert ring.find(None) is None and not ring.is_empty
    assert (ring.limits("acme").requests_per_minute, ring.limits("acme").max_jobs) in ((60, None), (None, 3))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("keys: [", "KVBLEND_API_KEYS is not YAML at line"),
        ("", "KVBLEND_API_KEYS: Input should be"),
        (f"{OPS} {APP}", "KVBLEND_API_KEYS: Input should be"),
        ("keys: [{name: a, role: admin, key: short}]", "KVBLEND_API_KEYS: keys.0.key: .* at least 16 characters"),
    ],
)
def test_what_are_no_keys_of_the_environment_is_said_without_them(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as found:
        KeyRing(None, text=text)
    assert "short" not in found.value.message and OPS not in found.value.message


def test_a_file_and_the_environment_are_not_both_asked(path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"KVBLEND_KEYS=.*keys.yaml and KVBLEND_API_KEYS both hold keys"):
        KeyRing(path, text=FILE)


def test_a_key_with_two_roles_is_refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reason = "the key 'app' is KVBLEND_API_KEY, too"
    for file, text in ((path, None), (None, FILE)):
        with pytest.raises(InvalidRequestError, match=reason) as found:
            KeyRing(file, text=text, api_key=APP)
        assert APP not in found.value.message
    ring = KeyRing(path, api_key="the single key that there is")
    write(path, FILE.replace(OPS, "the single key that there is"))
    with caplog.at_level(logging.ERROR):
        assert ring.find(OPS) is not None, "the keys that it had before are still taken"
    assert "the key 'ops' is KVBLEND_API_KEY, too" in caplog.text


def test_a_key_is_not_in_the_words_for_it(path: Path) -> None:
    assert OPS not in repr(key_file.read_key_file(path))
