// A question's attention over a context in pages, which is only read, and what it gives each of the context's tokens.
//
// Threads share a head's context by chunks of tiles. Weights stay in memory relative to their row's maximum so far;
// when all chunks are there, one more pass over them adds up what each key got.
#include <omp.h>

#include "tile.h"

namespace kvblend {

constexpr int ROWS = 128;         // of queries, about, that share a tile
constexpr int MIN_CHUNK = 4;      // tiles
constexpr int CHUNKS_A_THREAD = 3;  // so that threads end together

// Mirrored by `ProbeArguments` in structures.py.
struct Probe {
  Pages pages;
  const void *q, *own_keys, *own_values;  // the question's
  void* out;
  int64_t q_stride, key_stride, value_stride, out_stride;  // from token to token
  const int32_t* positions;                                // [num_tokens], increasing, behind the context
  const int32_t* table;                                    // the context's pages
  const uint8_t* readable;                                 // [num_context_tokens]
  float* scores;                                           // [num_context_tokens], added to
  int32_t num_tokens, num_context_tokens, num_heads, window;
  int32_t in_bf16;
  Softmax softmax;
};

// What one chunk of keys gives a head's rows.
struct Part {
  std::vector<float> out, maximum, sum;
};

template <typename C, typename S>
class Probing {
 public:
  explicit Probing(const Probe& own)
      : own_(own),
        dim_(own.pages.head_dim),
        num_kv_heads_(own.pages.num_kv_heads),
        group_(own.num_heads / own.pages.num_kv_heads),
        num_tiles_((own.num_context_tokens + TILE - 1) / TILE),
        per_block_(std::max(1, ROWS / group_)),
        rows_(std::min(per_block_, own.num_tokens) * group_) {
    const int wanted = std::max(1, omp_get_max_threads() * CHUNKS_A_THREAD / num_kv_heads_);
    per_chunk_ = std::max(MIN_CHUNK, (num_tiles_ + wanted - 1) / wanted);
    num_chunks_ = (num_tiles_ + per_chunk_ - 1) / per_chunk_;
    weights_.resize(size_t(num_kv_heads_) * num_tiles_ * rows_ * TILE);
    highest_.resize(size_t(num_kv_heads_) * num_tiles_ * rows_);
    norms_.resize(size_t(num_kv_heads_) * num_tiles_ * TILE);
    queries_.resize(size_t(num_kv_heads_) * rows_ * dim_);
    parts_.resize(size_t(num_kv_heads_) * (num_chunks_ + 1));
    for (Part& part : parts_) {
      part.out.resize(size_t(rows_) * dim_);
      part.maximum.resize(rows_);
      part.sum.resize(rows_);
    }
    all_seen_.resize(num_tiles_);
    for (int tile = 0; tile < num_tiles_; ++tile) {
      const int start = tile * TILE, count = std::min(TILE, own.num_context_tokens - start);
      all_seen_[tile] = std::all_of(own.readable + start, own.readable + start + count, [](uint8_t one) { return one; });
    }
  }

  void run() {
    for (int first = 0; first < own_.num_tokens; first += per_block_) {
      first_ = first, count_ = std::min(per_block_, own_.num_tokens - first);
      const int num_parts = num_kv_heads_ * (num_chunks_ + 1);
#pragma omp parallel
      {
        Scratch scratch(dim_, rows_);
#pragma omp for schedule(static)
        for (int head = 0; head < num_kv_heads_; ++head)
          gather_queries<C>(static_cast<const S*>(own_.q) + first_ * own_.q_stride, own_.q_stride, head, group_, count_,
                            dim_, queries(head));
#pragma omp for schedule(dynamic, 1)
        for (int item = 0; item < num_parts; ++item) {
          const int head = item % num_kv_heads_, chunk = item / num_kv_heads_;
          if (chunk < num_chunks_)
            over_context(head, chunk, scratch);
          else
            over_question(head, scratch);
        }
        release_matrix_unit(std::is_same_v<C, bf16>);
#pragma omp for schedule(static)
        for (int head = 0; head < num_kv_heads_; ++head) put_together(head);
#pragma omp for schedule(static)
        for (int tile = 0; tile < num_tiles_; ++tile) score(tile);
      }
    }
  }

 private:
  struct Scratch {
    Scratch(int dim, int rows)
        : keys(size_t(TILE) * dim), values(size_t(TILE) * dim), own(size_t(rows) * TILE), logits(size_t(rows) * TILE) {}
    std::vector<C> keys, values, own;
    std::vector<float> logits;
  };

  C* queries(int head) { return queries_.data() + size_t(head) * rows_ * dim_; }
  Part& part(int head, int chunk) { return parts_[size_t(head) * (num_chunks_ + 1) + chunk]; }
  size_t tile_of(int head, int tile) const { return size_t(head) * num_tiles_ + tile; }

  void clear(Part& part) {
    std::fill(part.out.begin(), part.out.end(), 0.0f);
    std::fill(part.maximum.begin(), part.maximum.end(), NOTHING);
    std::fill(part.sum.begin(), part.sum.end(), 0.0f);
  }

  void over_context(int head, int chunk, Scratch& scratch) {
    Part& part = this->part(head, chunk);
    clear(part);
    const int last = std::min(num_tiles_, (chunk + 1) * per_chunk_), rows = count_ * group_;
    for (int tile = chunk * per_chunk_; tile < last; ++tile) {
      const int start = tile * TILE, count = std::min(TILE, own_.num_context_tokens - start);
      C* weights = weights_.data() + tile_of(head, tile) * rows_ * TILE;
      float* highest = highest_.data() + tile_of(head, tile) * rows_;
      pack_tile<C, S>(own_.pages, own_.table, head, start, own_.num_context_tokens, scratch.keys.data(),
                      scratch.values.data());
      if (first_ == 0) norms_of(scratch.values.data(), norms_.data() + tile_of(head, tile) * TILE);
      multiply(rows, TILE, dim_, queries(head), scratch.keys.data(), scratch.logits.data(), false);
      const uint8_t* seen = all_seen_[tile] ? nullptr : own_.readable + start;
      for (int row = 0; row < rows; ++row) {
        const int position = own_.positions[first_ + row / group_];
        const int low = own_.window ? std::max(0, position + 1 - own_.window - start) : 0;
        const float shrink = weigh(scratch.logits.data() + size_t(row) * TILE, weights + size_t(row) * TILE, low, count,
                                   own_.softmax, seen, part.maximum[row], part.sum[row]);
        if (shrink != 1.0f) scale_row(part.out.data() + size_t(row) * dim_, dim_, shrink);
        highest[row] = part.maximum[row];
      }
      multiply(rows, dim_, TILE, weights, scratch.values.data(), part.out.data(), true);
    }
  }

  // The question's own tokens: as many tiles as they need, each a copy of rows.
  void over_question(int head, Scratch& scratch) {
    Part& part = this->part(head, num_chunks_);
    clear(part);
    const int rows = count_ * group_, end = first_ + count_;
    for (int start = 0; start < end; start += TILE) {
      const int count = std::min(TILE, end - start);
      std::fill(scratch.keys.begin(), scratch.keys.end(), C{});
      std::fill(scratch.values.begin(), scratch.values.end(), C{});
      for (int token = 0; token < count; ++token) {
        const S* key = static_cast<const S*>(own_.own_keys) + (start + token) * own_.key_stride + head * dim_;
        const S* value = static_cast<const S*>(own_.own_values) + (start + token) * own_.value_stride + head * dim_;
        for (int column = 0; column < dim_; ++column) {
          scratch.keys[place<C>(column, token, TILE)] = narrow<C>(widen(key[column]));
          scratch.values[place<C>(token, column, dim_)] = narrow<C>(widen(value[column]));
        }
      }
      multiply(rows, TILE, dim_, queries(head), scratch.keys.data(), scratch.logits.data(), false);
      for (int row = 0; row < rows; ++row) {
        const int token = first_ + row / group_, position = own_.positions[token];
        int low = 0;
        while (own_.window && low < count && own_.positions[start + low] <= position - own_.window) ++low;
        const float shrink =
            weigh(scratch.logits.data() + size_t(row) * TILE, scratch.own.data() + size_t(row) * TILE, low,
                  std::min(count, token + 1 - start), own_.softmax, nullptr, part.maximum[row], part.sum[row]);
        if (shrink != 1.0f) scale_row(part.out.data() + size_t(row) * dim_, dim_, shrink);
      }
      multiply(rows, dim_, TILE, scratch.own.data(), scratch.values.data(), part.out.data(), true);
    }
  }

  void norms_of(const C* values, float* norms) const {
    for (int key = 0; key < TILE; key += std::is_same_v<C, bf16> ? 2 : 1) {
      float even = 0, odd = 0;
      const C* row = values + int64_t(key) * dim_;
      if constexpr (std::is_same_v<C, bf16>) {
#pragma omp simd reduction(+ : even, odd)
        for (int column = 0; column < dim_; ++column) {
          const float first = widen(row[2 * column]), second = widen(row[2 * column + 1]);
          even += first * first;
          odd += second * second;
        }
        norms[key + 1] = std::sqrt(odd);
      } else {
#pragma omp simd reduction(+ : even)
        for (int column = 0; column < dim_; ++column) even += row[column] * row[column];
      }
      norms[key] = std::sqrt(even);
    }
  }

  // A head's output from its parts; `highest_` becomes what each row's weights of a tile are to be multiplied by.
  void put_together(int head) {
    const int rows = count_ * group_;
    std::vector<float> whole(dim_);
    for (int row = 0; row < rows; ++row) {
      float highest = NOTHING, total = 0;
      for (int chunk = 0; chunk <= num_chunks_; ++chunk) highest = std::max(highest, part(head, chunk).maximum[row]);
      std::fill(whole.begin(), whole.end(), 0.0f);
      for (int chunk = 0; chunk <= num_chunks_; ++chunk) {
        const Part& own = part(head, chunk);
        const float factor = power_of_two(own.maximum[row] - highest);
        total += own.sum[row] * factor;
        for (int column = 0; column < dim_; ++column) whole[column] += factor * own.out[size_t(row) * dim_ + column];
      }
      S* to = static_cast<S*>(own_.out) + (first_ + row / group_) * own_.out_stride +
              (int64_t(head) * group_ + row % group_) * dim_;
      for (int column = 0; column < dim_; ++column) to[column] = narrow<S>(whole[column] / total);
      for (int tile = 0; tile < num_tiles_; ++tile) {
        float& factor = highest_[tile_of(head, tile) * rows_ + row];
        factor = power_of_two(factor - highest) / total;
      }
    }
  }

  void score(int tile) {
    const int start = tile * TILE, rows = count_ * group_;
    alignas(64) float received[TILE];
    for (int head = 0; head < num_kv_heads_; ++head) {
      const C* weights = weights_.data() + tile_of(head, tile) * rows_ * TILE;
      const float* factors = highest_.data() + tile_of(head, tile) * rows_;
      const float* norms = norms_.data() + tile_of(head, tile) * TILE;
      std::fill(received, received + TILE, 0.0f);
      for (int row = 0; row < rows; ++row) {
        const float factor = factors[row];
        const C* from = weights + size_t(row) * TILE;
#pragma omp simd
        for (int key = 0; key < TILE; ++key) received[key] += factor * widen(from[key]);
      }
      const int count = std::min(TILE, own_.num_context_tokens - start);
      for (int key = 0; key < count; ++key)
        if (own_.readable[start + key]) own_.scores[start + key] += received[key] * norms[key] / group_;
    }
  }

  const Probe& own_;
  const int dim_, num_kv_heads_, group_, num_tiles_, per_block_, rows_;
  int per_chunk_, num_chunks_, first_ = 0, count_ = 0;
  std::vector<C> weights_, queries_;
  std::vector<float> highest_, norms_;
  std::vector<Part> parts_;
  std::vector<uint8_t> all_seen_;
};

}  // namespace kvblend

extern "C" void kvblend_probe(const kvblend::Probe* own) {
  using namespace kvblend;
  if (!own->pages.is_bf16)
    Probing<float, float>(*own).run();
  else if (own->in_bf16)
    Probing<bf16, bf16>(*own).run();
  else
    Probing<float, bf16>(*own).run();
}
