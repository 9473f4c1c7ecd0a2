"""Codes to numbers and back, inside a kernel. E4M3 is done in integer arithmetic, so that it runs on sm_80 too."""

import triton
import triton.language as tl


@triton.jit
def e4m3_to_float(code):
    """Bytes (uint8) to fp32: as fp16 of the same bits, 2**8 too small, whose subnormals are E4M3's. No NaN."""
    wide = code.to(tl.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def float_to_e4m3(x):
    """fp32 of magnitude up to 448 to bytes (uint8), to nearest even."""
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - 960
    # Adding 2**14 leaves multiples of 2**-9, E4M3's subnormals, in the low bits.
    shifted = tl.abs(x) + 16384.0
    subnormal = shifted.to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, subnormal, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def round_to_even(x):
    """fp32 below 2**22 to the nearest whole number."""
    return (x + 12582912.0) - 12582912.0
