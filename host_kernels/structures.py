"""The kernels' arguments as C knows them; each mirrors the structure of its name in `csrc/`."""

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, c_float, c_int32, c_int64, c_void_p

__all__ = [
    "AttendArguments",
    "Bring",
    "LoadLayer",
    "LoadSpan",
    "LoadState",
    "Pages",
    "ProbeArguments",
    "Softmax",
    "declare",
]


class Pages(Structure):
    _fields_ = (
        ("base", c_void_p),
        ("page_stride", c_int64),
        ("head_stride", c_int64),
        ("value_offset", c_int64),
        ("page_size", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("is_packed", c_int32),
        ("is_bf16", c_int32),
    )


class Softmax(Structure):
    _fields_ = (("scale", c_float), ("soft_cap", c_float))


class AttendArguments(Structure):
    _fields_ = (
        ("pages", Pages),
        ("q", c_void_p),
        ("out", c_void_p),
        ("q_stride", c_int64),
        ("out_stride", c_int64),
        ("positions", c_void_p),
        ("starts", c_void_p),
        ("tables", c_void_p),
        ("table_stride", c_int64),
        ("num_requests", c_int32),
        ("num_heads", c_int32),
        ("window", c_int32),
        ("in_bf16", c_int32),
        ("softmax", Softmax),
    )


class ProbeArguments(Structure):
    _fields_ = (
        ("pages", Pages),
        ("q", c_void_p),
        ("own_keys", c_void_p),
        ("own_values", c_void_p),
        ("out", c_void_p),
        ("q_stride", c_int64),
        ("key_stride", c_int64),
        ("value_stride", c_int64),
        ("out_stride", c_int64),
        ("positions", c_void_p),
        ("table", c_void_p),
        ("readable", c_void_p),
        ("scores", c_void_p),
        ("num_tokens", c_int32),
        ("num_context_tokens", c_int32),
        ("num_heads", c_int32),
        ("window", c_int32),
        ("in_bf16", c_int32),
        ("softmax", Softmax),
    )


class LoadLayer(Structure):
    _fields_ = (
        ("pages", Pages),
        ("table", c_void_p),
        ("write_from", c_int32),
        ("angles_at", c_int32),
        ("half", c_int32),
        ("interleaved", c_int32),
    )


class LoadSpan(Structure):
    _fields_ = (
        ("checksums", c_void_p),
        ("angles", c_void_p),
        ("payload_start", c_int64),
        ("extent_bytes", c_int64),
        ("scales_at", c_int64),
        ("fd", c_int32),
        ("num_tokens", c_int32),
        ("skipped", c_int32),
        ("stop", c_int32),
        ("start", c_int32),
        ("codec", c_int32),
        ("group_size", c_int32),
    )


Bring = CFUNCTYPE(c_int32, c_int32, c_int32, c_void_p)
"""(span, layer, extent), 0 where it was brought; called without the GIL, which it takes."""


class LoadState(Structure):
    _fields_ = (("failure", c_int32), ("layer", c_int32), ("error", c_int32))


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the functions' types."""
    for name, result, arguments in (
        ("kvblend_attend", None, [POINTER(AttendArguments)]),
        ("kvblend_probe", None, [POINTER(ProbeArguments)]),
        ("kvblend_load_new", c_void_p, [POINTER(LoadLayer), c_int32, POINTER(LoadSpan), c_int32, Bring]),
        ("kvblend_load_run", None, [c_void_p]),
        ("kvblend_load_state", LoadState, [c_void_p, c_int32]),
        ("kvblend_load_delete", None, [c_void_p]),
        ("kvblend_has_bf16_products", c_int32, []),
        ("kvblend_checksum", ctypes.c_uint64, [c_void_p, ctypes.c_size_t]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
