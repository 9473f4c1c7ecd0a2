// Numbers out of the codes that a passage is stored as: a code times its scale in fp32, rounded to a page's dtype.
#pragma once

#include "pages.h"

namespace kvblend {

// Mirrored by `CODECS` in loading.py.
enum CodecKind : int32_t { RAW = 0, INT8_CHANNEL = 1, FP8 = 2, INT4 = 3 };

// Of fp16 bits that are finite: fp32's exponent reaches beyond fp16's by 112 powers of two. Exact.
inline float widen_half(uint16_t bits) {
  const float magnitude = std::bit_cast<float>(uint32_t(bits & 0x7FFF) << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | uint32_t(bits & 0x8000) << 16);
}

// Of E4M3 bits that are finite: 120 powers of two. Exact.
inline float widen_fp8(uint8_t bits) {
  const float magnitude = std::bit_cast<float>(uint32_t(bits & 0x7F) << 20) * 0x1p120f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | uint32_t(bits & 0x80) << 24);
}

// One layer's keys or values: codes [num_tokens, num_heads, head_dim], half as many bytes where two share one. Scales
// in fp16: [num_heads, head_dim] by channel, else [num_tokens, num_heads, head_dim / group_size].
struct Coded {
  const uint8_t* codes;
  const uint16_t* scales;
  int32_t codec, group_size, num_heads, head_dim;

  // Numbers of `count` tokens of a head, from `token` on: `to` [count, head_dim].
  template <typename S>
  void decode(int token, int count, int head, S* to) const {
    const int dim = head_dim, dim_bytes = codec == INT4 ? dim / 2 : dim;
    float factors[512];
    if (codec == INT8_CHANNEL) widen_scales(scales + head * dim, 1, factors);
    for (int own = 0; own < count; ++own, to += dim) {
      const int64_t row = int64_t(token + own) * num_heads + head;
      const uint8_t* from = codes + row * dim_bytes;
      if (codec != INT8_CHANNEL) widen_scales(scales + row * (dim / group_size), group_size, factors);
      if (codec == FP8) {
#pragma omp simd
        for (int column = 0; column < dim; ++column) to[column] = narrow<S>(widen_fp8(from[column]) * factors[column]);
      } else if (codec == INT4) {
#pragma omp simd
        for (int column = 0; column < dim / 2; ++column) {
          to[column] = narrow<S>(float((from[column] & 15 ^ 8) - 8) * factors[column]);
          to[column + dim / 2] = narrow<S>(float((from[column] >> 4 ^ 8) - 8) * factors[column + dim / 2]);
        }
      } else {
#pragma omp simd
        for (int column = 0; column < dim; ++column) to[column] = narrow<S>(float(int8_t(from[column])) * factors[column]);
      }
    }
  }

 private:
  void widen_scales(const uint16_t* from, int group, float* factors) const {
    if (group == 1) {
#pragma omp simd
      for (int column = 0; column < head_dim; ++column) factors[column] = widen_half(from[column]);
    } else {
      for (int column = 0; column < head_dim; ++column) factors[column] = widen_half(from[column / group]);
    }
  }
};

}  // namespace kvblend
