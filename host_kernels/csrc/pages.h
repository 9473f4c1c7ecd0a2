// One layer's paged KV, in the two orders that vLLM's x86 kernels keep.
//
//   plain    a head's keys [head_dim][page_size], its values [page_size][head_dim]
//   packed   pairs side by side, 16 columns together, as matrix instructions take them:
//            keys   [page_size / 16][head_dim / 2][16 tokens][2 dims]
//            values [head_dim / 16][page_size / 2][16 dims][2 tokens]
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

namespace kvblend {

struct bf16 {
  uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(bf16 value) {
  return std::bit_cast<float>(uint32_t(value.bits) << 16);
}

template <typename T>
inline T narrow(float value);

template <>
inline float narrow<float>(float value) {
  return value;
}

// The nearest bf16 number of a finite one, ties to even.
template <>
inline bf16 narrow<bf16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return {uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}

// Mirrored by `Pages` in structures.py. Strides and offsets are in elements.
struct Pages {
  void* base;
  int64_t page_stride, head_stride, value_offset;
  int32_t page_size, num_kv_heads, head_dim;
  int32_t is_packed, is_bf16;
};

template <typename T>
T* keys_of(const Pages& pages, int64_t page, int head) {
  return static_cast<T*>(pages.base) + page * pages.page_stride + head * pages.head_stride;
}

template <typename T>
T* values_of(const Pages& pages, int64_t page, int head) {
  return keys_of<T>(pages, page, head) + pages.value_offset;
}

}  // namespace kvblend
