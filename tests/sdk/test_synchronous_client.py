"""The synchronous client is the asynchronous one, where nothing is awaited."""

import inspect

from kvblend.sdk import AsyncClient, Client
from tests.sdk.make_synchronous import SYNCHRONOUS, synchronous_client


def test_it_is_what_is_made_of_the_asynchronous_client() -> None:
    """Where this fails: `make sdk`."""
    assert SYNCHRONOUS.read_text() == synchronous_client()


def test_both_have_the_same_methods_and_only_one_is_awaited() -> None:
    public = {name for name in vars(AsyncClient) if not name.startswith("_")}
    assert public == {name for name in vars(Client) if not name.startswith("_")}
    for name in public:
        assert not inspect.iscoroutinefunction(getattr(Client, name)), name
        asynchronous = getattr(AsyncClient, name)
        assert inspect.iscoroutinefunction(asynchronous) or inspect.isasyncgenfunction(asynchronous), name
