// The path for CPUs with AVX2 and FMA: products by maddubs, into 16 bits that must not saturate.
#include "path.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "elementwise.inl"
#include "x86.inl"

namespace kimi {
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// |sum| <= 4 * 2 * 15 * 127 = 15240 in 16 bits.
template <int kVectors>
inline __m256i dot(const __m256i* w, const int8_t* activations, int64_t stride) {
    __m256i sum = _mm256_maddubs_epi16(w[0], load(activations));
    for (int i = 1; i < kVectors; ++i)
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[i], load(activations + i * stride)));
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

// A pair's sum is at most 2 * 128 * 127 = 32512 in 16 bits.
inline __m256i add_products(__m256i sum, __m256i magnitude, __m256i lent) {
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, lent);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

}  // namespace

const Path kAvx2 = {"avx2", has_avx2, multiply, quantize_values, gate_values, nullptr, nullptr};

}  // namespace kimi

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
