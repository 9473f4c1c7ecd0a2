#include <ATen/native/CPUBlas.h>

#include "tile.h"

namespace kvblend {

void multiply(int m, int n, int k, const float* a, const float* b, float* c, bool add) {
  at::native::cpublas::brgemm(m, n, k, k, n, n, add, a, b, c);
}

void multiply(int m, int n, int k, const bf16* a, const bf16* b, float* c, bool add) {
  at::native::cpublas::brgemm(m, n, k, k, n, n, add, reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(b), c);
}

void release_matrix_unit(bool is_bf16) { at::native::cpublas::brgemm_release(is_bf16); }

// Whether the CPU has them and torch uses them, which raises where oneDNN is told not to.
bool has_bf16_products() {
#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
  const bf16 a[32] = {}, b[32 * 16] = {};
  float c[16];
  try {
    multiply(1, 16, 32, a, b, c, false);
    release_matrix_unit(true);
    return true;
  } catch (const std::exception&) {
    return false;
  }
#else
  return false;
#endif
}

}  // namespace kvblend

extern "C" int kvblend_has_bf16_products() { return kvblend::has_bf16_products(); }
