"""The file format: whatever is put comes back bit for bit, and no damage goes unseen."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError
from kvblend.store import NEVER, CPUTier, DiskTier, PassageKVFile, PassageKVHeader, PassageKVKey
from kvblend.store.content import TensorContent
from kvblend.store.folder.folder_tier import FolderTier
from kvblend.store.format import LayerEntry
from tests.store.samples import SHAPE, make_key, make_kv
from tests.store.tier_contract import is_miss, opened

DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])


@pytest.fixture(scope="module", params=[CPUTier, DiskTier])
def tier(request: pytest.FixtureRequest) -> Iterator[FolderTier]:
    with TemporaryDirectory() as folder:
        tier: FolderTier = request.param(Path(folder), budget_bytes=1 << 30)
        yield tier
        tier.close()


def read_back(tier: FolderTier, key: PassageKVKey) -> torch.Tensor:
    with tier.fetch_many([key], NEVER)[key] as file:
        return file.read()


def remove(tier: FolderTier, key: PassageKVKey) -> None:
    tier.delete([key.variant], NEVER)


@settings(deadline=None, max_examples=60)
@given(
    dtype=DTYPES,
    num_layers=st.integers(1, 5),
    num_tokens=st.integers(1, 130),
    num_heads=st.integers(1, 5),
    head_dim=st.integers(1, 130),
    capture_position=st.integers(0, 1 << 20),
)
@example(torch.bfloat16, 300, 1, 1, 1, 0)  # a header of two extents
@example(torch.bfloat16, 30, 500, 3, 64, 25)  # read in threads
@example(torch.float32, 2, 16, 2, 32, 0)  # no padding at all
def test_what_is_put_comes_back(
    tier: FolderTier,
    dtype: torch.dtype,
    num_layers: int,
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    capture_position: int,
) -> None:
    key = make_key(1, num_heads=num_heads)
    shape = (num_layers, 2, num_tokens, num_heads, head_dim)
    kv = make_kv(num_tokens, shape=shape, dtype=dtype)
    tier.put(TensorContent(key, kv, capture_position=capture_position))
    with tier.fetch_many([key], NEVER)[key] as file:
        assert (file.header.key, file.header.shape, file.header.torch_dtype) == (key, shape, dtype)
        assert (file.header.capture_position, file.tier) == (capture_position, tier.name)
        assert torch.equal(file.read(), kv)
        out = torch.full(shape, float("nan"), dtype=dtype)
        assert file.read(out) is out
        assert torch.equal(out, kv)
        last = num_layers - 1
        assert torch.equal(file.read_layer(last), kv[last])
        assert torch.equal(file.read_layer(0, torch.full(shape[1:], float("nan"), dtype=dtype)), kv[0])
    remove(tier, key)


def test_kv_of_any_strides_is_stored_as_it_reads(tier: FolderTier) -> None:
    kv = make_kv(1, shape=(2, 3, 5, 2, 8)).permute(1, 0, 2, 3, 4).transpose(2, 4)  # [3, 2, 8, 2, 5]
    tier.put(TensorContent(make_key(1), kv, capture_position=0))
    assert torch.equal(read_back(tier, make_key(1)), kv)
    remove(tier, make_key(1))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_flipped_bit_and_any_truncation_is_seen(tier: FolderTier, data: st.DataObject) -> None:
    key = make_key(2)
    tier.put(TensorContent(key, make_kv(2), capture_position=3))
    path = tier.root / key.file_name
    whole = path.read_bytes()
    damage = data.draw(st.sampled_from(["flip", "truncate", "extend"]))
    if damage == "flip":
        bit = data.draw(st.integers(0, len(whole) * 8 - 1))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
    elif damage == "truncate":
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        path.write_bytes(whole + bytes(data.draw(st.integers(1, 8192))))
    file = tier.fetch_many([key], NEVER).get(key)
    if file is not None:
        with file, pytest.raises(CorruptPassageKVError):
            file.read()
    remove(tier, key)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=9000), st.booleans())
def test_random_bytes_are_a_miss(tier: FolderTier, body: bytes, with_magic: bool) -> None:
    key = make_key(3)
    path = tier.root / key.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"KVBLEND\0\x02\0\0\0" if with_magic else b"") + body)
    assert not tier.fetch_many([key], NEVER)
    assert not path.exists()


def forged(text: bytes) -> bytes:
    """A header extent with a right checksum around any text."""
    body = text.ljust(4096 - 24, b"\0")
    prefix = b"KVBLEND\0" + (2).to_bytes(4, "little") + len(text).to_bytes(4, "little")
    checksum = xxhash.xxh3_64_intdigest(prefix + bytes(8) + body)
    return prefix + checksum.to_bytes(8, "little") + body


def honest_text() -> str:
    key = make_key(4)
    return PassageKVHeader(
        model_fingerprint=key.model_fingerprint,
        encode_context=key.encode_context,
        passage_id=key.passage_id,
        head_start=0,
        head_end=2,
        dtype="float32",
        shape=(3, 2, 5, 2, 8),
        capture_position=0,
        layers=(LayerEntry(stored_bytes=640, checksum="0" * 16),) * 3,
    ).model_dump_json()


@pytest.mark.parametrize(
    ("true", "false"),
    [
        ('"shape":[3,2,5,2,8]', '"shape":[3,2,500000000000,2,8]'),
        ('"shape":[3,2,5,2,8]', '"shape":[3,2,-5,2,8]'),
        ('"shape":[3,2,5,2,8]', '"shape":[3,2,5.5,2,8]'),
        ('"shape":[3,2,5,2,8]', '"shape":[3,2,1' + "0" * 400 + ",2,8]"),
        ('"shape":[3,2,5,2,8]', '"shape":[4,2,5,2,8]'),
        ('"shape":[3,2,5,2,8]', '"shape":[3,2,5,3,8]'),
        ('"shape":[3,2,5,2,8]', '"shape":[3,2,5]'),
        ('"dtype":"float32"', '"dtype":"object"'),
        ('"name":"raw"', '"name":"pickle"'),
        ('"stored_bytes":640', '"stored_bytes":641'),
        ('"head_end":2', '"head_end":2,"more":1'),
        ('"model_fingerprint":"model-1"', '"model_fingerprint":"../../etc"'),
        ("{", "[" * 2000),
    ],
)
def test_a_header_that_lies_is_a_miss_and_allocates_nothing(tier: FolderTier, true: str, false: str) -> None:
    text = honest_text()
    assert true in text
    path = tier.root / make_key(4).file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(forged(text.replace(true, false).encode()) + bytes(3 * 4096))
    assert is_miss(tier, 4)
    assert not path.exists()


def test_a_forged_header_that_tells_the_truth_is_read() -> None:
    """The control of the test above: only the lie makes a miss."""
    extent = forged(honest_text().encode())
    assert PassageKVHeader.unpack(extent, file_bytes=4 * 4096).shape == SHAPE


def test_a_huge_sparse_file_is_a_miss(tier: FolderTier) -> None:
    text = honest_text().replace('"shape":[3,2,5,2,8]', f'"shape":[3,2,{1 << 30},2,8]')
    path = tier.root / make_key(4).file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(forged(text.encode()))
        file.truncate(4096 + 3 * 2 * (1 << 30) * 2 * 8 * 4)
    assert is_miss(tier, 4)


def test_a_file_under_another_passages_name_is_a_miss(tier: FolderTier) -> None:
    tier.put(TensorContent(make_key(5), make_kv(5), capture_position=0))
    path = tier.root / make_key(6).file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    (tier.root / make_key(5).file_name).rename(path)
    assert is_miss(tier, 6)


@pytest.mark.parametrize(
    ("kv", "message"),
    [
        (torch.zeros(3, 2, 5, 2, 8, dtype=torch.int64), "int64"),
        (torch.zeros(3, 2, 5, 3, 8), r"\[3, 2, 5, 3, 8\]"),
        (torch.zeros(3, 1, 5, 2, 8), r"\[3, 1, 5, 2, 8\]"),
        (torch.zeros(3, 2, 0, 2, 8), r"\[3, 2, 0, 2, 8\]"),
        (torch.zeros(3, 2, 5), r"\[3, 2, 5\]"),
        (torch.zeros(5000, 2, 1, 2, 8), "5000 layers"),
    ],
)
def test_kv_that_is_none_is_refused(kv: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        TensorContent(make_key(1), kv, capture_position=0)


def test_out_of_another_form_is_refused(tier: FolderTier) -> None:
    tier.put(TensorContent(make_key(7), make_kv(7), capture_position=0))
    file = opened(tier, 7)
    assert isinstance(file, PassageKVFile)
    with file:
        for out in (
            torch.empty(SHAPE, dtype=torch.bfloat16),
            torch.empty(1),
            torch.empty(SHAPE[::-1]).permute(4, 3, 2, 1, 0),
        ):
            with pytest.raises(InvalidRequestError, match=r"out|contiguous"):
                file.read(out)
        with pytest.raises(IndexError, match="layer 3 of 3"):
            file.read_layer(3)
