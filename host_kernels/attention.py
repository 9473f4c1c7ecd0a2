"""Attention over contexts in pages: from tokens to repair, and from a question that scores what it looks at."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.host_kernels.build import HostKernels
from kvblend.host_kernels.pages import HostPagedKV
from kvblend.host_kernels.structures import AttendArguments, ProbeArguments, Softmax
from kvblend.triton_kernels import AttentionSpec

__all__ = ["Rows", "attend", "probe"]


@dataclass(frozen=True)
class Rows:
    """Tokens of several requests, side by side: what is the same in every layer of a KV cache group.

    positions int32 `[n]`, strictly increasing within a request; starts int32 `[num_requests + 1]`, where each one's
    tokens begin; tables int32 `[num_requests, max_pages]`, its pages.
    """

    positions: Tensor
    starts: Tensor
    tables: Tensor

    @classmethod
    def of(cls, positions: Sequence[Tensor], tables: Sequence[Tensor]) -> "Rows":
        """positions: each request's, int64 `[n]`; tables: its pages, int32 `[num_pages]`."""
        lengths = torch.tensor([0, *(len(own) for own in positions)])
        padded = torch.nn.utils.rnn.pad_sequence(list(tables), batch_first=True)
        return cls(torch.cat(list(positions)).int(), lengths.cumsum(0).int(), padded.int().contiguous())


def attend(
    kernels: HostKernels, pages: HostPagedKV, cache: Tensor, spec: AttentionSpec, q: Tensor, rows: Rows
) -> Tensor:
    """Attend from each row to its request's tokens up to itself, all of them in `cache`, its own keys and values too.

    q: `[n, heads, head_dim]` of the cache's dtype, a row's heads contiguous. Returns the same, contiguous. Logits and
    sums are fp32; weights are rounded to bf16 where the CPU multiplies bf16 numbers.
    """
    out = torch.empty(q.shape, dtype=q.dtype)
    own = AttendArguments(
        pages.structure(cache),
        _rows_of(q, pages),
        out.data_ptr(),
        q.stride(0),
        out.stride(0),
        rows.positions.data_ptr(),
        rows.starts.data_ptr(),
        rows.tables.data_ptr(),
        rows.tables.stride(0),
        len(rows.tables),
        q.shape[1],
        spec.sliding_window or 0,
        kernels.in_bf16,
        Softmax(spec.scale, spec.soft_cap or 0.0),
    )
    kernels.library.kvblend_attend(ctypes.byref(own))
    return out


def probe(
    kernels: HostKernels,
    pages: HostPagedKV,
    cache: Tensor,
    spec: AttentionSpec,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    positions: Tensor,
    table: Tensor,
    readable: Tensor,
    scores: Tensor,
) -> Tensor:
    """Attend from a question to a context in `cache` and to the question itself, and add up what each token gives it.

    q `[n, heads, head_dim]`, keys and values `[n, kv_heads, head_dim]` are the question's, at `positions` int32 `[n]`
    behind the context, whose pages are `table` int32; `readable` bool `[num_context_tokens]`: which of its tokens are
    there. To `scores`, fp32 `[num_context_tokens]`, is added a token's attention weight times its value's norm, summed
    over question and KV heads, a mean over the heads that share one. Returns as `attend`.
    """
    out = torch.empty(q.shape, dtype=q.dtype)
    own = ProbeArguments(
        pages.structure(cache),
        _rows_of(q, pages),
        _rows_of(keys, pages),
        _rows_of(values, pages),
        out.data_ptr(),
        q.stride(0),
        keys.stride(0),
        values.stride(0),
        out.stride(0),
        positions.data_ptr(),
        table.data_ptr(),
        readable.data_ptr(),
        scores.data_ptr(),
        len(q),
        len(readable),
        q.shape[1],
        spec.sliding_window or 0,
        kernels.in_bf16,
        Softmax(spec.scale, spec.soft_cap or 0.0),
    )
    kernels.library.kvblend_probe(ctypes.byref(own))
    return out


def _rows_of(tensor: Tensor, pages: HostPagedKV) -> int:
    """Where rows `[n, heads, head_dim]` begin."""
    shape, strides = tensor.shape, tensor.stride()
    assert shape[2] == pages.head_dim and shape[1] % pages.num_kv_heads == 0, f"{list(shape)} for {pages}"
    assert tensor.dtype == pages.dtype and strides[2] == 1 and strides[1] == shape[2], f"{tensor.dtype}, {strides}"
    return tensor.data_ptr()
