"""Keys and the file names that stand for them."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.core.errors import InvalidRequestError
from kvblend.store import PassageKVKey
from tests.store.samples import CONTEXT, make_key

HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)
FINGERPRINTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", fullmatch=True, alphabet=string.printable)


@given(FINGERPRINTS, HASHES, HASHES, st.integers(0, 1000), st.integers(1, 64))
def test_a_file_name_gives_its_key_back(fingerprint: str, context: str, passage: str, start: int, num: int) -> None:
    key = PassageKVKey(fingerprint, context, passage, start, start + num)
    assert PassageKVKey.from_file_name(key.file_name) == key
    assert ".." not in key.file_name.split("/")


@given(st.text(max_size=300))
def test_any_other_name_has_no_key(name: str) -> None:
    assert PassageKVKey.from_file_name(name) is None


@pytest.mark.parametrize(
    "mend",
    [
        lambda name: name.replace("h0-2", "h00-2"),
        lambda name: name.replace("h0-2", "h2-2"),
        lambda name: name.replace("v2.kv", "v1.kv"),
        lambda name: "../" + name,
        lambda name: name + "\n",
    ],
)
def test_a_name_that_no_key_has(mend) -> None:  # type: ignore[no-untyped-def]
    name = make_key(1).file_name
    assert PassageKVKey.from_file_name(name) is not None
    assert PassageKVKey.from_file_name(mend(name)) is None


@pytest.mark.parametrize("fingerprint", ["", "..", "a/b", ".hidden", "a" * 129, "a\n"])
def test_a_fingerprint_that_names_a_path_is_refused(fingerprint: str) -> None:
    with pytest.raises(InvalidRequestError, match="model fingerprint"):
        PassageKVKey(fingerprint, CONTEXT, CONTEXT, 0, 1)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (-1, 2), (3, 2), (0, 1 << 30)])
def test_an_impossible_head_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(InvalidRequestError, match="head range"):
        PassageKVKey("model", CONTEXT, CONTEXT, start, end)


def test_a_hash_of_another_form_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="64 lower-case hex digits"):
        PassageKVKey("model", CONTEXT.upper(), CONTEXT, 0, 1)
