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

bool has_bf16_products() { 
#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
  return true;
#else
  return false;
#endif
 }

}  // namespace kvblend

extern "C" int kvblend_has_bf16_products() { return kvblend::has_bf16_products(); }
