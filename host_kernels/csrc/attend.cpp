// Attention from tokens at any positions of contexts in pages, each to all tokens up to itself.
#include <omp.h>

#include "tile.h"

namespace kvblend {

constexpr int ROWS = 192;   // of queries, about, that share a tile
constexpr int STEP = 8;     // tokens by which a tile's rows begin: a shape of product is compiled once

// Mirrored by `AttendArguments` in structures.py.
struct Attend {
  Pages pages;
  const void* q;
  void* out;
  int64_t q_stride, out_stride;  // from token to token
  const int32_t* positions;      // [num_tokens], increasing within a request
  const int32_t* starts;         // [num_requests + 1], the requests' tokens
  const int32_t* tables;         // [num_requests, table_stride], their pages
  int64_t table_stride;
  int32_t num_requests, num_heads, window;
  int32_t in_bf16;  // products of bf16 numbers
  Softmax softmax;
};

struct Block {
  int request, first, count;  // tokens
};

template <typename C, typename S>
class Attention {
 public:
  explicit Attention(const Attend& own, int max_tokens)
      : own_(own),
        dim_(own.pages.head_dim),
        group_(own.num_heads / own.pages.num_kv_heads),
        keys_(size_t(TILE) * dim_),
        values_(size_t(TILE) * dim_),
        queries_(size_t(max_tokens) * group_ * dim_),
        weights_(size_t(max_tokens) * group_ * TILE),
        logits_(size_t(max_tokens) * group_ * TILE),
        out_(size_t(max_tokens) * group_ * dim_),
        maximum_(max_tokens * group_),
        sum_(max_tokens * group_) {}

  void run(const Block& block, int head) {
    const int32_t* positions = own_.positions + block.first;
    const int rows = block.count * group_;
    gather_queries<C>(static_cast<const S*>(own_.q) + block.first * own_.q_stride, own_.q_stride, head, group_,
                      block.count, dim_, queries_.data());
    std::fill(out_.begin(), out_.begin() + size_t(rows) * dim_, 0.0f);
    std::fill(maximum_.begin(), maximum_.begin() + rows, NOTHING);
    std::fill(sum_.begin(), sum_.begin() + rows, 0.0f);
    const int end = positions[block.count - 1] + 1;
    const int begin = own_.window ? std::max(0, positions[0] + 1 - own_.window) / 32 * 32 : 0;
    for (int start = begin; start < end; start += TILE) {
      const int first = std::lower_bound(positions, positions + block.count, start) - positions;
      const int seeing = own_.window
                             ? std::lower_bound(positions, positions + block.count, start + TILE - 1 + own_.window) -
                                   positions
                             : block.count;
      if (first < seeing) add(block, head, start, end, first / STEP * STEP, seeing);
    }
    for (int token = 0; token < block.count; ++token) write(block.first + token, head, token);
  }

 private:
  void add(const Block& block, int head, int start, int end, int first, int last) {
    const int32_t* positions = own_.positions + block.first;
    pack_tile<C, S>(own_.pages, own_.tables + block.request * own_.table_stride, head, start, end, keys_.data(),
                    values_.data());
    const int begin = first * group_, rows = (last - first) * group_;
    multiply(rows, TILE, dim_, queries_.data() + size_t(begin) * dim_, keys_.data(), logits_.data(), false);
    for (int row = 0; row < rows; ++row) {
      const int position = positions[first + row / group_], at = begin + row;
      const int low = own_.window ? std::max(0, position + 1 - own_.window - start) : 0;
      const int high = std::min(TILE, position + 1 - start);
      const float shrink = weigh(logits_.data() + size_t(row) * TILE, weights_.data() + size_t(row) * TILE, low, high,
                                 own_.softmax, nullptr, maximum_[at], sum_[at]);
      if (shrink != 1.0f) scale_row(out_.data() + size_t(at) * dim_, dim_, shrink);
    }
    multiply(rows, dim_, TILE, weights_.data(), values_.data(), out_.data() + size_t(begin) * dim_, true);
  }

  void write(int token, int head, int row) {
    S* to = static_cast<S*>(own_.out) + token * own_.out_stride + int64_t(head) * group_ * dim_;
    for (int member = 0; member < group_; ++member) {
      const int at = row * group_ + member;
      const float share = 1.0f / sum_[at];
      const float* from = out_.data() + size_t(at) * dim_;
      for (int column = 0; column < dim_; ++column) to[member * dim_ + column] = narrow<S>(from[column] * share);
    }
  }

  const Attend& own_;
  const int dim_, group_;
  std::vector<C> keys_, values_, queries_, weights_;
  std::vector<float> logits_, out_, maximum_, sum_;
};

template <typename C, typename S>
void attend(const Attend& own) {
  const int group = own.num_heads / own.pages.num_kv_heads;
  const int per_block = std::max(STEP, ROWS / group / STEP * STEP);
  std::vector<Block> blocks;
  for (int request = 0; request < own.num_requests; ++request)
    for (int first = own.starts[request]; first < own.starts[request + 1]; first += per_block)
      blocks.push_back({request, first, std::min(per_block, own.starts[request + 1] - first)});
  // the longest contexts first, so that threads end together
  std::stable_sort(blocks.begin(), blocks.end(), [&](const Block& one, const Block& other) {
    return own.positions[one.first + one.count - 1] > own.positions[other.first + other.count - 1];
  });
  const int num_heads = own.pages.num_kv_heads, num_items = int(blocks.size()) * num_heads;
#pragma omp parallel
  {
    Attention<C, S> attention(own, per_block);
#pragma omp for schedule(dynamic, 1)
    for (int item = 0; item < num_items; ++item) attention.run(blocks[item / num_heads], item % num_heads);
    release_matrix_unit(std::is_same_v<C, bf16>);
  }
}

}  // namespace kvblend

extern "C" void kvblend_attend(const kvblend::Attend* own) {
  using namespace kvblend;
  if (!own->pages.is_bf16)
    attend<float, float>(*own);
  else if (own->in_bf16)
    attend<bf16, bf16>(*own);
  else
    attend<float, bf16>(*own);
}
