// A tile of keys and values as the second operand of matrix products, and what happens to its logits.
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "pages.h"

namespace kvblend {

constexpr int TILE = 128;  // keys
constexpr float NOTHING = -1e30f;  // a maximum over no logit

// C [m, n] (+)= A [m, k] B [k, n], fp32; B of bf16 numbers has pairs of its rows side by side.
void multiply(int m, int n, int k, const float* a, const float* b, float* c, bool add);
void multiply(int m, int n, int k, const bf16* a, const bf16* b, float* c, bool add);
void release_matrix_unit(bool is_bf16);
bool has_bf16_products();

constexpr float LOG2_E = 1.44269504f;

// 2 to the power of x, of x at most 127: within 2e-7 of it, relatively. Nothing from -127 down, so that what is masked
// has no weight whatever its value is.
inline float power_of_two(float x) {
  x = x < -127.0f ? -127.0f : x;
  const float whole = std::nearbyint(x), rest = x - whole;
  float y = 1.33335581e-3f;
  y = y * rest + 9.61812911e-3f;
  y = y * rest + 5.55041087e-2f;
  y = y * rest + 2.40226507e-1f;
  y = y * rest + 6.93147181e-1f;
  y = y * rest + 1.0f;
  return std::bit_cast<float>(std::bit_cast<int32_t>(y) + (int32_t(whole) << 23));
}

// B's elements: row k, column n of a matrix with n_columns.
template <typename C>
inline int64_t place(int64_t row, int64_t column, int64_t num_columns) {
  if constexpr (std::is_same_v<C, bf16>)
    return row / 2 * 2 * num_columns + 2 * column + row % 2;
  else
    return row * num_columns + column;
}

// Rows of S, `columns` of each, `stride` apart, to B's columns [first, first + columns).
template <typename C, typename S>
inline void pack_rows(const S* source, int64_t stride, int num_rows, int columns, C* target, int first, int num_columns) {
  if constexpr (std::is_same_v<C, bf16>) {
    for (int row = 0; row < num_rows; row += 2) {
      const S *even = source + row * stride, *odd = even + stride;
      C* to = target + place<C>(row, first, num_columns);
#pragma omp simd
      for (int column = 0; column < columns; ++column) {
        to[2 * column] = even[column];
        to[2 * column + 1] = odd[column];
      }
    }
  } else {
    for (int row = 0; row < num_rows; ++row) {
      const S* from = source + row * stride;
      C* to = target + place<C>(row, first, num_columns);
#pragma omp simd
      for (int column = 0; column < columns; ++column) to[column] = widen(from[column]);
    }
  }
}

// 16 columns that are packed already, [num_rows / 2][16][2], to B's columns [first, first + 16).
template <typename C, typename S>
inline void pack_pairs(const S* source, int num_rows, C* target, int first, int num_columns) {
  for (int row = 0; row < num_rows; row += 2) {
    const S* from = source + row * 16;
    if constexpr (std::is_same_v<C, bf16>) {
      std::memcpy(target + place<C>(row, first, num_columns), from, 32 * sizeof(S));
    } else {
      C *even = target + row * num_columns + first, *odd = even + num_columns;
#pragma omp simd
      for (int column = 0; column < 16; ++column) {
        even[column] = widen(from[2 * column]);
        odd[column] = widen(from[2 * column + 1]);
      }
    }
  }
}

// Keys [start, start + TILE) of a context of `end` tokens as B [head_dim, TILE], values as B [TILE, head_dim].
// Keys behind the end are of any finite value, values are zero. `start` is a multiple of 32, as a page's size is.
template <typename C, typename S>
void pack_tile(const Pages& pages, const int32_t* table, int head, int start, int end, C* keys, C* values) {
  const int dim = pages.head_dim, size = pages.page_size;
  const int length = std::min(TILE, end - start);
  for (int first = 0; first < length;) {
    const int page = (start + first) / size, offset = (start + first) % size;
    const int count = std::min(std::min(size - offset, TILE - first), (length - first + 31) / 32 * 32);
    const S *k = keys_of<S>(pages, table[page], head), *v = values_of<S>(pages, table[page], head);
    if (pages.is_packed) {
      for (int own = 0; own < count; own += 16)
        pack_pairs<C>(k + int64_t(offset + own) * dim, dim, keys, first + own, TILE);
      for (int part = 0; part < dim; part += 16)
        pack_pairs<C>(v + int64_t(part) * size + offset * 16, count, values + place<C>(first, 0, dim), part, dim);
    } else {
      pack_rows<C>(k + offset, size, dim, count, keys, first, TILE);
      pack_rows<C>(v + int64_t(offset) * dim, dim, count, dim, values + place<C>(first, 0, dim), 0, dim);
    }
    first += count;
  }
  const int filled = (length + 31) / 32 * 32;
  for (int row = length; row < filled; ++row)
    for (int column = 0; column < dim; ++column) values[place<C>(row, column, dim)] = C{};
  std::fill(values + int64_t(filled) * dim, values + int64_t(TILE) * dim, C{});
  for (int row = 0; row < dim && filled < TILE; ++row)
    for (int column = filled; column < TILE; ++column) keys[place<C>(row, column, TILE)] = C{};
}

struct Softmax {
  float scale, soft_cap;  // 0: none
};

// A weight on its way to a product: a bf16 number rounds half up, which is one instruction less.
template <typename C>
inline C weight_of(float value) {
  if constexpr (std::is_same_v<C, bf16>) {
    return {uint16_t((std::bit_cast<uint32_t>(value) + 0x8000) >> 16)};
  } else {
    return value;
  }
}

// One row's products with keys [low, high) of a tile to weights relative to the row's maximum, which is kept, in units
// of log 2; those of other keys are 0. `seen`: 1 for keys that are there, 0 for others; null where all are. Returns by
// what the row's former output is to be multiplied; `sum` is up to date.
template <typename C>
inline float weigh(float* logits, C* weights, int low, int high, const Softmax& softmax, const uint8_t* seen,
                   float& maximum, float& sum) {
  if (low >= high) {
    std::fill(weights, weights + TILE, C{});
    return 1.0f;
  }
  float scale = softmax.scale * LOG2_E;
  if (softmax.soft_cap > 0) {
    const float cap = softmax.soft_cap, inner = 2 * LOG2_E * softmax.scale / cap;
#pragma omp simd
    for (int key = low; key < high; ++key)
      logits[key] = cap * (1.0f - 2.0f / (power_of_two(std::min(logits[key] * inner, 120.0f)) + 1.0f));
    scale = LOG2_E;
  }
  if (seen != nullptr) {
#pragma omp simd
    for (int key = low; key < high; ++key) logits[key] = seen[key] ? logits[key] : 2 * NOTHING;
  }
  const bool whole = low == 0 && high == TILE;  // loops of a known length take half the time
  const auto highest_of = [&](int first, int last) {
    float highest = NOTHING;
#pragma omp simd reduction(max : highest)
    for (int key = first; key < last; ++key) highest = logits[key] > highest ? logits[key] : highest;
    return highest;
  };
  // scales are positive
  const float highest = std::max(maximum, scale * (whole ? highest_of(0, TILE) : highest_of(low, high)));
  float total = 0;
  const auto weigh_keys = [&](int first, int last) {
#pragma omp simd reduction(+ : total)
    for (int key = first; key < last; ++key) {
      const float weight = power_of_two(logits[key] * scale - highest);
      weights[key] = weight_of<C>(weight);
      total += weight;
    }
  };
  if (whole) {
    weigh_keys(0, TILE);
  } else {
    std::fill(weights, weights + low, C{});
    weigh_keys(low, high);
    std::fill(weights + high, weights + TILE, C{});
  }
  if (maximum == highest) {
    sum += total;
    return 1.0f;
  }
  const float shrink = power_of_two(maximum - highest);
  maximum = highest;
  sum = sum * shrink + total;
  return shrink;
}

inline void scale_row(float* row, int dim, float factor) {
#pragma omp simd
  for (int column = 0; column < dim; ++column) row[column] *= factor;
}

// Queries of the heads that share a KV head, [num_tokens * group, dim], a token's heads side by side.
template <typename C, typename S>
inline void gather_queries(const S* q, int64_t row_stride, int head, int group, int num_tokens, int dim, C* target) {
  for (int token = 0; token < num_tokens; ++token) {
    const S* from = q + token * row_stride + int64_t(head) * group * dim;
    C* to = target + int64_t(token) * group * dim;
    if constexpr (std::is_same_v<C, S>)
      std::memcpy(to, from, size_t(group) * dim * sizeof(S));
    else
      for (int index = 0; index < group * dim; ++index) to[index] = widen(from[index]);
  }
}

}  // namespace kvblend
