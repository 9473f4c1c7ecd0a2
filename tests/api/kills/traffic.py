"""Clients that ingest, delete and ask until they are stopped, and know what must be there afterwards."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

__all__ = ["COLLECTION", "Traffic"]

COLLECTION = "kills"
NUM_WRITERS, NUM_READERS = 2, 2
DOCUMENTS_A_WRITER = 6
Work = Callable[[httpx.Client, random.Random, int], None]
Version = int | None
"""Of a document; None: there is none."""


@dataclass
class Traffic:
    """`possible`: by document, its versions of which one must be there: one where the service had acknowledged it."""

    url: str
    seed: int = 0
    pause_s: float = 0.0
    """Between a client's requests: they are not to take the cores from a server that starts."""
    possible: dict[str, set[Version]] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    """Accepted, by id."""
    statuses: list[int] = field(default_factory=list)
    broken_streams: list[str] = field(default_factory=list)
    """Streams that ended without their last event, though their connection held."""
    _version: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin, in threads."""
        self._stopped.clear()
        works: list[Work] = [self._write] * NUM_WRITERS
        works += [self._read] * NUM_READERS
        for number, work in enumerate(works):
            self.seed += 1
            self._threads.append(threading.Thread(target=self._run, args=(work, random.Random(self.seed), number)))
            self._threads[-1].start()

    def stop(self) -> None:
        """Stop behind what is under way."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(120)
        self._threads.clear()

    def _run(
        self, work: Callable[[httpx.Client, random.Random, int], None], chance: random.Random, number: int
    ) -> None:
        with httpx.Client(base_url=f"{self.url}/v1/collections/{COLLECTION}", timeout=120) as client:
            while not self._stopped.is_set():
                try:
                    work(client, chance, number)
                    self._stopped.wait(self.pause_s)
                except httpx.TransportError:  # the service was killed; what it had not said may or may not be
                    self._stopped.wait(0.05)

    def _write(self, client: httpx.Client, chance: random.Random, number: int) -> None:
        """Each document is one writer's, who knows its order of events."""
        document = f"w{number}-{chance.randrange(DOCUMENTS_A_WRITER)}"
        possible = self.possible.setdefault(document, {None})
        if chance.random() < 0.25:
            possible.add(None)
            status = client.delete(f"/documents/{document}").status_code
            self.statuses.append(status)
            if status in (204, 404):
                self.possible[document] = {None}
            return
        with self._lock:
            self._version += 1
            version = self._version
        possible.add(version)
        body = {"id": document, "text": _text(chance), "metadata": {"version": version}}
        answer = client.post("/documents", json=body)
        self.statuses.append(answer.status_code)
        if answer.status_code == 202:
            self.possible[document] = {version}
            self.jobs.append(answer.json()["id"])

    def _read(self, client: httpx.Client, chance: random.Random, number: int) -> None:
        body: dict[str, Any] = {"question": f"What of w{chance.randrange(300)}?", "top_k": 3, "max_tokens": 8}
        if number % 2:
            self.statuses.append(client.post("/query", json=body).status_code)
            return
        answer = client.post("/query", json={**body, "stream": True})
        self.statuses.append(answer.status_code)
        if answer.status_code == 200 and not ("event: done" in answer.text or "event: error" in answer.text):
            self.broken_streams.append(answer.text[-200:])


def _text(chance: random.Random) -> str:
    """A few passages; parts of it are other documents' as well."""
    paragraphs = (random.Random(chance.randrange(60)) for _ in range(chance.randrange(1, 6)))
    return "\n\n".join(" ".join(f"w{each.randrange(300)}" for _ in range(60)) + "." for each in paragraphs)
