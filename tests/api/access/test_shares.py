"""No tenant holds so much that there is nothing left for the others, and each is told which bound it met."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from kvblend.api.access.admission import MAX_UPLOADS, Admission
from kvblend.api.access.key_ring import KeyRing
from kvblend.api.access.shares import Shares
from kvblend.api.ingest.upload_room import MAX_WAITING_BYTES, UploadRoom
from kvblend.core.errors import OverloadedError, TooManyRequestsError
from tests.api.access.served_keys import client_of, write_keys
from tests.api.scripted_service import ScriptedService, scripted_service

OWN = "{beta: {max_requests: 1, max_jobs: 1}}"
STREAM = {"messages": [{"role": "user", "content": "?"}], "stream": True, "max_tokens": 100}


def test_a_share_leaves_some_and_an_own_bound_goes_before_it(tmp_path: Path) -> None:
    shares = Shares(KeyRing(write_keys(tmp_path / "keys.yaml", OWN)), share=0.75)
    assert shares.places("acme", 8, "max_requests") == 6
    assert shares.places("acme", 1, "max_requests") == 1, "whatever the share, it is not shut out"
    assert shares.places("beta", 8, "max_requests") == 1
    assert shares.places("beta", 8) == 6, "uploads have no bound of their own"
    more = Shares(KeyRing(write_keys(tmp_path / "more.yaml", "{beta: {max_requests: 100}}")), share=0.75)
    assert more.places("beta", 8, "max_requests") == 8, "nobody has more than there are"


def test_a_tenant_alone_may_hold_all(tmp_path: Path) -> None:
    for keys in (KeyRing(None), KeyRing(None, api_key="the one key that there is")):
        assert Shares(keys, share=0.5).places("default", 8, "max_requests") == 8
    assert Shares(KeyRing(write_keys(tmp_path / "keys.yaml")), share=1.0).places("acme", 8) == 8


def test_places_of_one_tenant_are_no_other_tenants(tmp_path: Path) -> None:
    admission = Admission(4, Shares(KeyRing(write_keys(tmp_path / "keys.yaml")), share=0.75))
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(admission.place("answer", "acme"))
        with pytest.raises(TooManyRequestsError, match="3 answers of the tenant 'acme' are under way"):
            held.enter_context(admission.place("answer", "acme"))
        held.enter_context(admission.place("lookup", "acme"))
        held.enter_context(admission.place("answer", "beta"))
        with pytest.raises(TooManyRequestsError, match="4 answers are under way, as many as the service takes"):
            held.enter_context(admission.place("answer", "default"))
    with ExitStack() as held:
        for _ in range(MAX_UPLOADS * 3 // 4):
            held.enter_context(admission.place("upload", "acme"))
        with pytest.raises(TooManyRequestsError, match="24 uploads of the tenant 'acme'"):
            held.enter_context(admission.place("upload", "acme"))


def test_room_for_documents_is_shared_too(tmp_path: Path) -> None:
    room = UploadRoom(Shares(KeyRing(write_keys(tmp_path / "keys.yaml")), share=0.75))
    half = MAX_WAITING_BYTES // 2
    with room.taken(half, "acme"):
        pass
    with pytest.raises(OverloadedError, match="of the tenant 'acme' wait to be parsed"), room.taken(half, "acme"):
        pass
    with pytest.raises(ZeroDivisionError), room.taken(half, "beta"):
        raise ZeroDivisionError
    with room.taken(half, "beta"):
        pass
    with pytest.raises(OverloadedError, match=f"^{2 * half} bytes of documents wait"), room.taken(1, "default"):
        pass
    room.give(half, "acme")
    with room.taken(half, "acme"):
        pass


@pytest.fixture(scope="module")
def scripted(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("shares")
    keys = write_keys(folder / "keys.yaml", OWN)
    with scripted_service(
        folder, model=demo_model_path, embedding_model=embedding_model_path, keys=keys, max_requests=4, max_jobs=4
    ) as service:
        yield service


def assert_refused(response: httpx.Response, code: str, words: str) -> None:
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    assert error["code"] == code and words in error["message"]
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(("name", "num_places"), [("acme-query", 3), ("beta-admin", 1)])
def test_streams_of_a_tenant_leave_places(scripted: ScriptedService, name: str, num_places: int) -> None:
    tenant = name.partition("-")[0]
    scripted.engine.token_s = 2.0  # a stream takes minutes
    try:
        with client_of(scripted.url, name) as client, client_of(scripted.url, "ops") as ops, ExitStack() as streams:
            held = []  # an iterator that nobody holds ends its stream
            for _ in range(num_places):
                answer = streams.enter_context(_streamed(client))
                held.append(answer.iter_lines())
                assert answer.status_code == 200 and next(held[-1])
            refused = client.post("/v1/chat/completions", json=STREAM)
            assert_refused(refused, "too_many_requests", f"{num_places} answers of the tenant '{tenant}'")
            short = {**STREAM, "stream": False, "max_tokens": 1}
            assert ops.post("/v1/chat/completions", json=short).status_code == 200
    finally:
        scripted.engine.token_s = 0.0


@contextmanager
def _streamed(client: httpx.Client) -> Iterator[httpx.Response]:
    """A stream, once the places of streams that were left before have been given back."""
    deadline = time.monotonic() + 120
    while True:
        with client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
            if answer.status_code != 429:
                yield answer
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_jobs_of_a_tenant_leave_places(scripted: ScriptedService) -> None:
    scripted.engine.hangs = True  # so that its encodes do
    try:
        for name, num_places in (("acme-ingest", 3), ("beta-admin", 1)):
            with client_of(scripted.url, name) as client:
                client.post("/v1/collections", json={"name": "jobs"}).raise_for_status()
                for number in range(num_places):
                    body = {"text": f"The {number}th text of {name}. " * 30}
                    assert client.post("/v1/collections/jobs/documents", json=body).status_code == 202
                if name == "acme-ingest":
                    words = "3 ingest jobs of the tenant 'acme'"
                    for path in ("/v1/collections/jobs/documents", "/v1/collections/jobs/rebuild"):
                        assert_refused(client.post(path, json={}), "too_many_jobs", words)
        with client_of(scripted.url, "beta-admin") as client:
            refused = client.post("/v1/collections/jobs/documents", json={"text": "More."})
            assert_refused(refused, "too_many_jobs", "4 ingest jobs wait or run, as many as the service takes")
    finally:
        scripted.engine.hangs = False
