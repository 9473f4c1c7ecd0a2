// Stored passages on their way into a request's pages: read, checked, rotated and written while they are in a core's
// cache, by as many threads as call.
#include <errno.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "codes.h"
#include "lines.h"
#include "pages.h"
#include "xxh3.h"

namespace kvblend {

// Mirrored by `LoadLayer` in structures.py.
struct LoadLayer {
  Pages pages;
  const int32_t* table;  // the request's pages
  int32_t write_from;    // tokens at positions below it are not written
  int32_t angles_at;     // where in a span's angles its cos and sin begin; -1: keys do not turn
  int32_t half;          // of the dimensions that turn
  int32_t interleaved;   // a pair's halves are neighbours
};

// Mirrored by `LoadSpan` in structures.py.
struct LoadSpan {
  const uint64_t* checksums;  // [num_layers], of its extents
  const float* angles;        // cos [half], sin [half] of one rotation after the other; null where keys stay
  int64_t payload_start, extent_bytes;
  int64_t scales_at;  // byte of an extent where the scales of its codes begin
  int32_t fd;         // -1: the caller brings its extents
  int32_t num_tokens, skipped, stop;  // its tokens [skipped, stop) are written
  int32_t start;                      // position of its first token, the skipped ones counted
  int32_t codec, group_size;
};

// Writes a checked extent of a span's layer where it is told to; not 0 where it cannot.
using Bring = int32_t (*)(int32_t span, int32_t layer, void* extent);

enum Failure : int32_t { SOUND = 0, CHECKSUM = 1, TOO_SHORT = 2, READ_ERROR = 3, NOT_BROUGHT = 4 };

// Mirrored by `LoadState` in structures.py.
struct LoadState {
  int32_t failure, layer, error;
};

constexpr int RUN = 32;  // tokens that are rotated together

class Load {
 public:
  Load(const LoadLayer* layers, int num_layers, const LoadSpan* spans, int num_spans, Bring bring)
      : layers_(layers, layers + num_layers),
        spans_(spans, spans + num_spans),
        bring_(bring),
        states_(num_spans, LoadState{SOUND, -1, 0}),
        failures_(num_spans) {}

  // Take up layers of spans until none is left; others may still be at some.
  void run() {
    const int64_t num_items = int64_t(layers_.size() * spans_.size());
    for (int64_t item; (item = next_.fetch_add(1)) < num_items;) {
      const int layer = int(item / spans_.size()), span = int(item % spans_.size());
      if (failures_[span] == SOUND) load(layer, span);
    }
    end_stream();
  }

  LoadState state(int span) const { return states_[span]; }

 private:
  // A thread's own extent, at a multiple of 4 KiB as direct reads want it, kept from one call to the next.
  // Null where there is no memory.
  static uint8_t* own_extent(int64_t num_bytes) {
    thread_local struct Held {
      uint8_t* at = nullptr;
      int64_t num_bytes = 0;
      ~Held() { std::free(at); }
    } held;
    if (held.num_bytes < num_bytes) {
      std::free(held.at);
      held.at = static_cast<uint8_t*>(std::aligned_alloc(4096, (num_bytes + 4095) / 4096 * 4096));
      held.num_bytes = held.at == nullptr ? 0 : num_bytes;
    }
    return held.at;
  }

  void load(int layer, int index) {
    const LoadSpan& span = spans_[index];
    uint8_t* extent = own_extent(span.extent_bytes);
    int error = extent == nullptr ? ENOMEM : 0;
    const int failure = error          ? READ_ERROR
                        : span.fd >= 0 ? read(span, layer, extent, error)
                        : bring_(index, layer, extent) == 0 ? SOUND
                                                            : NOT_BROUGHT;
    if (failure != SOUND) {
      int first = SOUND;  // others may be at layers of the span that fail as well, or do not
      if (failures_[index].compare_exchange_strong(first, failure)) states_[index] = {failure, layer, error};
      return;
    }
    const LoadLayer& own = layers_[layer];
    if (own.pages.is_bf16)
      move<bf16>(own, span, extent);
    else
      move<float>(own, span, extent);
  }

  static int read(const LoadSpan& span, int layer, uint8_t* extent, int& error) {
    int64_t done = 0;
    while (done < span.extent_bytes) {
      const ssize_t count = ::pread(span.fd, extent + done, size_t(span.extent_bytes - done),
                                    span.payload_start + layer * span.extent_bytes + done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) {
        error = errno;
        return READ_ERROR;
      }
      if (count == 0) return TOO_SHORT;
      done += count;
    }
    return xxh3_64(extent, size_t(span.extent_bytes)) == span.checksums[layer] ? SOUND : CHECKSUM;
  }

  template <typename S>
  void move(const LoadLayer& layer, const LoadSpan& span, const uint8_t* extent) const {
    const Pages& pages = layer.pages;
    const int row = pages.num_kv_heads * pages.head_dim;
    const auto coded = [&](int half) {  // of a span in codes: its keys, its values
      const int64_t codes = int64_t(span.num_tokens) * row;
      const int64_t num_scales = span.codec == INT8_CHANNEL ? row : codes / span.group_size;
      const auto* scales = reinterpret_cast<const uint16_t*>(extent + span.scales_at) + half * num_scales;
      return Coded{extent + half * (span.codec == INT4 ? codes / 2 : codes), scales, span.codec, span.group_size,
                   pages.num_kv_heads, pages.head_dim};
    };
    const bool is_raw = span.codec == RAW;
    const S *keys = nullptr, *values = nullptr;
    Coded coded_keys{}, coded_values{};
    if (is_raw)
      keys = reinterpret_cast<const S*>(extent), values = keys + int64_t(span.num_tokens) * row;
    else
      coded_keys = coded(0), coded_values = coded(1);
    const int first = std::max(span.skipped, layer.write_from - span.start);
    const bool turns = span.angles != nullptr && layer.angles_at >= 0;
    const float* angles = turns ? span.angles + layer.angles_at : nullptr;
    alignas(LINE) S turned[RUN * 512], decoded[RUN * 512];
    for (int token = first; token < span.stop;) {
      const int position = span.start + token, offset = position % pages.page_size;
      const int count = std::min({RUN - offset % RUN, span.stop - token, pages.page_size - offset});
      const int64_t page = layer.table[position / pages.page_size];
      for (int head = 0; head < pages.num_kv_heads; ++head) {
        const int stride = is_raw ? row : pages.head_dim;
        const int64_t at = int64_t(token) * row + head * pages.head_dim;
        const S* key = is_raw ? keys + at : decoded;
        if (!is_raw) coded_keys.decode(token, count, head, decoded);
        int key_stride = stride;
        if (turns) {
          for (int own = 0; own < count; ++own)
            turn(key + int64_t(own) * stride, turned + own * pages.head_dim, angles, layer, pages.head_dim);
          key = turned, key_stride = pages.head_dim;
        }
        write_keys(pages, keys_of<S>(pages, page, head), key, key_stride, offset, count);
        if (!is_raw) coded_values.decode(token, count, head, decoded);
        write_values(pages, values_of<S>(pages, page, head), is_raw ? values + at : decoded, stride, offset, count);
      }
      token += count;
    }
  }

  // Rounded as PyTorch's addcmul rounds: the first product, then the sum with the other.
  template <typename S>
  static void turn(const S* from, S* to, const float* angles, const LoadLayer& layer, int dim) {
    const int half = layer.half;
    const float *cosine = angles, *sine = angles + half;
    if (layer.interleaved) {
      for (int pair = 0; pair < half; ++pair) {
        const float one = widen(from[2 * pair]), other = widen(from[2 * pair + 1]);
        to[2 * pair] = narrow<S>(std::fma(-other, sine[pair], one * cosine[pair]));
        to[2 * pair + 1] = narrow<S>(std::fma(one, sine[pair], other * cosine[pair]));
      }
    } else {
#pragma omp simd
      for (int pair = 0; pair < half; ++pair) {
        const float one = widen(from[pair]), other = widen(from[pair + half]);
        to[pair] = narrow<S>(std::fma(-other, sine[pair], one * cosine[pair]));
        to[pair + half] = narrow<S>(std::fma(one, sine[pair], other * cosine[pair]));
      }
    }
    std::copy(from + 2 * half, from + dim, to + 2 * half);
  }

  // Where lines can be had whole they are streamed; what is left goes element by element.
  template <typename S>
  static void write_keys(const Pages& pages, S* page, const S* keys, int stride, int offset, int count) {
    const int dim = pages.head_dim, size = pages.page_size;
    int token = 0;
#if defined(__AVX512BW__)
    if (!pages.is_packed) {
      using Word = std::conditional_t<sizeof(S) == 2, uint16_t, uint32_t>;
      constexpr int SIDE = LINE / sizeof(S);
      if (is_line(page + offset) && dim % SIDE == 0)
        for (; token + SIDE <= count; token += SIDE)
          for (int column = 0; column < dim; column += SIDE)
            Transposition<Word>::run(reinterpret_cast<const Word*>(keys + int64_t(token) * stride + column), stride,
                                     reinterpret_cast<Word*>(page + int64_t(column) * size + offset + token), size);
    } else if (sizeof(S) == 2 && offset % 16 == 0 && is_line(page) && dim % 32 == 0) {
      for (; token + 16 <= count; token += 16)  // pairs of dimensions change places as one
        for (int column = 0; column < dim; column += 32)
          Transposition<uint32_t>::run(
              reinterpret_cast<const uint32_t*>(keys + int64_t(token) * stride + column), stride / 2,
              reinterpret_cast<uint32_t*>(page + int64_t(offset + token) * dim + column * 16), 16);
    }
#endif
    for (; token < count; ++token) {
      const int at = offset + token;
      const S* from = keys + int64_t(token) * stride;
      S* to = pages.is_packed ? page + int64_t(at / 16) * 16 * dim + at % 16 * 2 : page + at;
      if (pages.is_packed)
        for (int column = 0; column < dim; column += 2) std::memcpy(to + column * 16, from + column, 2 * sizeof(S));
      else
        for (int column = 0; column < dim; ++column) to[int64_t(column) * size] = from[column];
    }
  }

  template <typename S>
  static void write_values(const Pages& pages, S* page, const S* values, int stride, int offset, int count) {
    const int dim = pages.head_dim, size = pages.page_size;
    int token = 0;
    if (!pages.is_packed) {
      for (; token < count; ++token) {
        const S* from = values + int64_t(token) * stride;
        S* to = page + int64_t(offset + token) * dim;
        if (is_line(to) && dim * sizeof(S) % LINE == 0)
          stream(to, from, dim * sizeof(S) / LINE);
        else
          std::memcpy(to, from, dim * sizeof(S));
      }
      return;
    }
#if defined(__AVX512BW__)
    if (sizeof(S) == 2 && offset % 2 == 0 && is_line(page) && dim % 32 == 0)
      for (; token + 2 <= count; token += 2)
        for (int column = 0; column < dim; column += 32) {
          const auto* from = reinterpret_cast<const uint16_t*>(values + int64_t(token) * stride + column);
          auto* to = reinterpret_cast<uint16_t*>(page + int64_t(column) * size + (offset + token) * 16);
          stream_in_turn(from, from + stride, to, to + 16 * size);
        }
#endif
    for (; token < count; ++token) {
      const int at = offset + token;
      const S* from = values + int64_t(token) * stride;
      for (int column = 0; column < dim; ++column)
        page[int64_t(column / 16) * 16 * size + at / 2 * 32 + column % 16 * 2 + at % 2] = from[column];
    }
  }

  const std::vector<LoadLayer> layers_;
  const std::vector<LoadSpan> spans_;
  const Bring bring_;
  std::vector<LoadState> states_;
  std::vector<std::atomic<int>> failures_;
  std::atomic<int64_t> next_{0};
};

}  // namespace kvblend

extern "C" {

void* kvblend_load_new(const kvblend::LoadLayer* layers, int num_layers, const kvblend::LoadSpan* spans, int num_spans,
                       kvblend::Bring bring) {
  return new kvblend::Load(layers, num_layers, spans, num_spans, bring);
}

void kvblend_load_run(void* load) { static_cast<kvblend::Load*>(load)->run(); }

kvblend::LoadState kvblend_load_state(const void* load, int span) {
  return static_cast<const kvblend::Load*>(load)->state(span);
}

void kvblend_load_delete(void* load) { delete static_cast<kvblend::Load*>(load); }

uint64_t kvblend_checksum(const uint8_t* data, size_t length) { return kvblend::xxh3_64(data, length); }

}  // extern "C"
