"""A small collection for the console's tests, and what the scripted engine says about it."""

from collections.abc import Iterator
from contextlib import contextmanager

from kvblend.sdk import Client
from tests.api.scripted_service import ScriptedService

__all__ = ["ANSWER", "NAMES", "harbour"]

NAMES = ("crane.txt", "handbook.md", "tides.txt")
HANDBOOK = """# Harbour handbook

## Incidents

Report every incident to the duty officer within one hour, in writing. The report names the place, the time, who was
there and what was done. A report that comes later is taken all the same, and says why it is late.

## The lock

The harbour master keeps the log of all ships that pass the lock at night. Ships that wait show two green lights. The
lock opens every twenty minutes from April to October, and on request in winter.
"""
TIDES = """The tide tables of the harbour are made each December for the year that follows. They give high and low
water at the gate, in local time. When the gauge shows more than four metres, the storm gate is closed by the keeper."""
CRANE = """The crane on the north quay lifts eight tonnes. It is booked at the office, a day ahead, paid by the hour.
Masts are set and taken down on Tuesdays and Fridays."""
ANSWER = (
    "Report every incident to the duty officer within one hour, in writing. "
    "The harbour master keeps the log of all ships at night. Nobody knows what the moon says."
)


@contextmanager
def harbour(console: ScriptedService, name: str) -> Iterator[str]:
    """The collection, for as long as it is needed; the engine gives its answer word by word."""
    console.engine.words = [f"{word} " for word in ANSWER.split()]
    with Client(console.url) as client:
        client.create_collection(name, passage_tokens=64)
        for document, text in zip(NAMES, (CRANE, HANDBOOK, TIDES), strict=True):
            client.wait(client.add_document(name, text, id=document))
        yield name
        client.delete_collection(name)
