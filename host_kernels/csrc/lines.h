// Whole cache lines: transposed in registers, and written past the cache, which what is loaded once would only flush.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace kvblend {

constexpr int LINE = 64;  // bytes

inline bool is_line(const void* at) { return reinterpret_cast<uintptr_t>(at) % LINE == 0; }

// Copy lines to `to`, which is one's first byte.
inline void stream(void* to, const void* from, int num_lines) {
#if defined(__AVX512BW__)
  for (int line = 0; line < num_lines; ++line)
    _mm512_stream_si512(static_cast<__m512i*>(to) + line, _mm512_loadu_si512(static_cast<const char*>(from) + line * LINE));
#else
  std::memcpy(to, from, size_t(num_lines) * LINE);
#endif
}

// What was streamed is there for other threads.
inline void end_stream() {
#if defined(__AVX512BW__)
  _mm_sfence();
#endif
}

#if defined(__AVX512BW__)

// Word by word for 2 bytes an element, double word by double word for 4: as many rows as a line has elements. Blocks off
// the diagonal change places, halves first.
template <typename Element>
struct Transposition {
  using Type = Element;
  static constexpr int SIZE = LINE / sizeof(Element);
  typedef Element Line __attribute__((vector_size(LINE)));

  template <int DISTANCE>
  static inline void swap(Line* rows) {
    Line upper, lower;
    for (int lane = 0; lane < SIZE; ++lane) {
      upper[lane] = lane & DISTANCE ? SIZE + lane - DISTANCE : lane;
      lower[lane] = lane & DISTANCE ? SIZE + lane : lane + DISTANCE;
    }
#pragma GCC unroll 32
    for (int row = 0; row < SIZE; ++row) {
      if (row & DISTANCE) continue;
      const Line one = rows[row], other = rows[row + DISTANCE];
      rows[row] = __builtin_shuffle(one, other, upper);
      rows[row + DISTANCE] = __builtin_shuffle(one, other, lower);
    }
  }

  // `from`: rows, `stride` elements apart; `to`: their columns, each a line to be streamed, `pitch` elements apart.
  static inline void run(const Element* from, int64_t stride, Element* to, int64_t pitch) {
    Line rows[SIZE];
#pragma GCC unroll 32
    for (int row = 0; row < SIZE; ++row) std::memcpy(&rows[row], from + row * stride, LINE);
    if constexpr (SIZE == 32) swap<16>(rows);
    swap<8>(rows);
    swap<4>(rows);
    swap<2>(rows);
    swap<1>(rows);
#pragma GCC unroll 32
    for (int row = 0; row < SIZE; ++row) {
      static_assert(sizeof(Line) == sizeof(__m512i));
      __m512i line;
      std::memcpy(&line, &rows[row], LINE);
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + row * pitch), line);
    }
  }
};

// 32 elements of 2 bytes of two rows, taken in turn: two lines to be streamed.
inline void stream_in_turn(const uint16_t* even, const uint16_t* odd, uint16_t* low, uint16_t* high) {
  typedef uint16_t Line __attribute__((vector_size(LINE)));
  Line one, other, lower, upper;
  std::memcpy(&one, even, LINE);
  std::memcpy(&other, odd, LINE);
  for (int lane = 0; lane < 32; ++lane) {
    lower[lane] = lane / 2 + lane % 2 * 32;
    upper[lane] = lower[lane] + 16;
  }
  const Line first = __builtin_shuffle(one, other, lower), second = __builtin_shuffle(one, other, upper);
  stream(low, &first, 1);
  stream(high, &second, 1);
}

#endif

}  // namespace kvblend
