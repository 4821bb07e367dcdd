// The paths for CPUs with AVX-512 VNNI, without AMX and with it: one instruction multiplies and adds four neighbours into
// 32 bits. Two to eight tokens take registers of 256 bits, as with AVX2; one alone takes 512, and many take 512 or tiles.
//
// Built with KIMI_EMULATE_VNNI, that instruction is spelled out in AVX2 and the path runs where it is missing: so the
// tests reach everything in this file but the instruction itself; what has 512 bits is left out then.
#include "path.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#elif defined(KIMI_EMULATE_VNNI)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

#include "elementwise.inl"
#include "wide.inl"
#include "x86.inl"
#if !defined(KIMI_EMULATE_VNNI)
#include "single512.inl"
#include "wide512.inl"
#endif

namespace kimi {
namespace {

#if defined(KIMI_EMULATE_VNNI)
bool has_vnni() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

inline __m256i add_products(__m256i sum, __m256i magnitude, __m256i lent) {
    const __m256i low = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(magnitude)),
                                          _mm256_cvtepi8_epi16(_mm256_castsi256_si128(lent)));
    const __m256i high = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(magnitude, 1)),
                                           _mm256_cvtepi8_epi16(_mm256_extracti128_si256(lent, 1)));
    return _mm256_add_epi32(sum, _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8));
}
#else
bool has_vnni() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

inline __m256i add_products(__m256i sum, __m256i magnitude, __m256i lent) {
    return _mm256_dpbusd_epi32(sum, magnitude, lent);
}
#endif

// Two chains: one would wait for itself.
template <int kVectors>
inline __m256i dot(const __m256i* w, const int8_t* activations, int64_t stride) {
    __m256i sum = add_products(_mm256_setzero_si256(), w[0], load(activations));
    if constexpr (kVectors == 1) return sum;
    __m256i other = add_products(_mm256_setzero_si256(), w[1], load(activations + stride));
    for (int i = 2; i < kVectors; i += 2) {
        sum = add_products(sum, w[i], load(activations + i * stride));
        other = add_products(other, w[i + 1], load(activations + (i + 1) * stride));
    }
    return _mm256_add_epi32(sum, other);
}

}  // namespace

#if defined(KIMI_EMULATE_VNNI)
constexpr MultiplyWide multiply_wide = multiply_plain;
void multiply_narrow(const Rows& rows, const Panel& panel, float* y) { multiply(rows, panel, y); }
#endif

const Path kVnni = {"avx512vnni", has_vnni, multiply_narrow, quantize_values, gate_values, open_rows, multiply_wide};
const Path kAmx = {"amx", has_amx, multiply_narrow, quantize_values, gate_values, open_rows, multiply_amx};

}  // namespace kimi

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
