"""A Redis or Valkey server over TLS: who is believed, who is not, and what is said of it."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme

from kvblend.cli.engine import free_port
from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings
from kvblend.store import NEVER, Deadline, TieredStore
from kvblend.store.remote import RemoteTier, remote_objects
from tests.store.remote.servers import ValkeyServer, make_cluster
from tests.store.remote.tls_front import TLSFront
from tests.store.samples import make_key
from tests.store.store_samples import put as put_in_store
from tests.store.tier_contract import contains, content, delete, is_miss, keys, put

PASSWORD = "secret/word with:odd#characters"
USER = ["--user", "default", "off", "--user", "kv", "on", f">{PASSWORD}", "~kvblend:*", "+@all"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_certs(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("authority") / "of the store.pem"
    authority.cert_pem.write_to_path(str(path))
    return quote(str(path))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """One with a user of its own, and a password."""
    with ValkeyServer(tmp_path, *USER) as server:
        yield server


def tier_at(port: int, options: str = "", *, password: str = PASSWORD, host: str = "127.0.0.1") -> RemoteTier:
    return RemoteTier(remote_objects(f"rediss://{host}:{port}/0{options}", username="kv", password=password))


def test_a_user_behind_the_authority_that_the_address_names(
    server: ValkeyServer, authority: trustme.CA, ca_certs: str
) -> None:
    with TLSFront(server.port, authority) as front:
        tier = tier_at(front.port, f"?ssl_ca_certs={ca_certs}")
        assert put(tier, 1, 2) and tier.variants("model-1", make_key(1).passage_id, NEVER) == keys(1)
        assert contains(tier, 1) and contains(tier, 2) and not is_miss(tier, 2)
        assert delete(tier, 1, 2) == 2 and is_miss(tier, 1)
        assert tier.location == f"rediss://127.0.0.1:{front.port}/0"
        tier.close()
        wrong = tier_at(front.port, f"?ssl_ca_certs={ca_certs}", password="another secret")
        with pytest.raises(OSError, match="AuthenticationError"):
            wrong.put(content(1), NEVER)
        wrong.close()


@pytest.mark.parametrize("reason", ["another authority", "no authority", "another host"])
def test_a_server_that_is_not_believed_is_refused_with_the_reason(
    server: ValkeyServer, authority: trustme.CA, ca_certs: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And before it is told the password."""
    caplog.set_level(logging.DEBUG, "kvblend")
    own = trustme.CA() if reason == "another authority" else authority
    host = "another.example" if reason == "another host" else "127.0.0.1"
    with TLSFront(server.port, own, host=host) as front:
        tier = tier_at(front.port, "" if reason == "no authority" else f"?ssl_ca_certs={ca_certs}")
        match = "not valid for '127.0.0.1'" if reason == "another host" else "certificate verify failed"
        with pytest.raises(OSError, match=match) as caught:
            tier.put(content(1), NEVER)
        for _ in range(3):
            assert tier.lookup_many([make_key(1)], Deadline.after(1.0)) == set()
        (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert "failed 3 times in a row" in warning and "certificate verify failed" in warning
        for text in (str(caught.value), caplog.text):
            assert "secret" not in text and "word" not in text
        tier.close()


def test_a_client_shows_its_own_certificate_where_the_server_asks_for_one(
    server: ValkeyServer, authority: trustme.CA, ca_certs: str, tmp_path: Path
) -> None:
    """Redis asks by default (`tls-auth-clients yes`)."""
    clients = trustme.CA()
    certificate = clients.issue_cert("worker-1.example")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(tmp_path / "cert.pem"), append=True)
    with TLSFront(server.port, authority, clients=clients) as front:
        options = f"?ssl_ca_certs={ca_certs}&ssl_certfile={tmp_path}/cert.pem&ssl_keyfile={tmp_path}/key.pem"
        tier = tier_at(front.port, options)
        assert put(tier, 1) and contains(tier, 1)
        tier.close()
        nameless = tier_at(front.port, f"?ssl_ca_certs={ca_certs}")
        with pytest.raises(OSError):
            nameless.put(content(2), NEVER)
        nameless.close()


def test_a_value_of_many_records(server: ValkeyServer, authority: trustme.CA, ca_certs: str) -> None:
    """Received into its own memory over TLS too."""
    data = bytes(range(256)) * (9 << 12)
    with TLSFront(server.port, authority) as front:
        url = f"rediss://127.0.0.1:{front.port}?ssl_ca_certs={ca_certs}"
        objects = remote_objects(url, username="kv", password=PASSWORD)
        for name in ("model-1/00/passage/a", "model-1/00/passage/b"):
            assert objects.put(name, memoryview(data)) and bytes(objects.get(name)) == data
        objects.close()


def test_settings_name_it_all(
    server: ValkeyServer, authority: trustme.CA, ca_certs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TLSFront(server.port, authority) as front:
        for name, value in {
            "REMOTE": f"rediss://127.0.0.1:{front.port}?ssl_ca_certs={ca_certs}",
            "REMOTE_USERNAME": "kv",
            "REMOTE_PASSWORD": PASSWORD,
            "WRITE": "remote",
            "CPU_BYTES": "0",
            "DISK_PATH": str(tmp_path / "disk"),
        }.items():
            monkeypatch.setenv(f"KVBLEND_{name}", value)
        settings = Settings()
        assert PASSWORD not in repr(settings)
        with TieredStore.from_settings(settings) as store:
            assert put_in_store(store, 1) == ["redis"]


def test_a_cluster(authority: trustme.CA, ca_certs: str, tmp_path: Path) -> None:
    """Its servers send a client on to each other's TLS ports."""
    with ExitStack() as closing:
        bus_ports, nodes, fronts = [free_port() for _ in range(3)], [], []
        for number, bus_port in enumerate(bus_ports):
            (folder := tmp_path / str(number)).mkdir()
            node = ValkeyServer(folder, "--cluster-enabled", "yes", "--cluster-port", str(bus_port))
            nodes.append(closing.enter_context(node))
            fronts.append(closing.enter_context(TLSFront(node.port, authority)))
        make_cluster([node.port for node in nodes], first_bus_port=bus_ports[0], announced=[f.port for f in fronts])
        url = f"rediss://127.0.0.1:{fronts[0].port}?cluster=1&ssl_ca_certs={ca_certs}"
        tier = RemoteTier(remote_objects(url))
        assert put(tier, *range(12))
        assert tier.lookup_many([make_key(number) for number in range(13)], NEVER) == keys(*range(12))
        assert sum(node.num_keys() > 0 for node in nodes) == 3
        tier.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs='/nowhere/ca.pem' cannot be read: .*No such file"),
        ("?ssl_ca_certs={folder}/text.pem", "ssl_ca_certs='.*text.pem' cannot be read: .*no certificate"),
        ("?ssl_certfile={folder}/text.pem", "ssl_certfile='.*text.pem' cannot be read"),
        ("?ssl_keyfile={folder}/text.pem", "ssl_keyfile without ssl_certfile"),
    ],
)
def test_files_that_are_none_are_refused_at_once(options: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate\n")
    with pytest.raises(InvalidRequestError, match=message):
        remote_objects("rediss://127.0.0.1" + options.format(folder=tmp_path), password=PASSWORD)


def test_an_authority_without_tls_is_refused(ca_certs: str) -> None:
    with pytest.raises(InvalidRequestError, match="ssl_ca_certs needs TLS: say rediss://"):
        remote_objects(f"redis://127.0.0.1?ssl_ca_certs={ca_certs}")
