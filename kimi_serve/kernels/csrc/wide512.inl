// Wide panels in registers of 512 bits: one instruction adds four columns' products of sixteen tokens. Included by
// vnni.cpp alone.

namespace kimi {
namespace {

constexpr int kRowsAtOnce = 8;  // times two registers of tokens: sixteen sums, so that none waits for itself

// One side of the products must be unsigned: int4's weights are; for int8 the activations become it, by 128 more.
// In assembly, since g++ 12 copies every sum of a loop from register to register around its own intrinsic.
template <bool kInt4>
inline void add_products(__m512i& sum, __m512i w, __m512i x) {
    if (kInt4)
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    else
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
}

inline int32_t sum_bytes(const uint8_t* row, int64_t count) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < count; k += kWideBlock)
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_loadu_si512(row + k));
    return _mm512_reduce_add_epi32(sum);
}

// kRows rows of one group times kVectors registers of tokens.
template <bool kInt4, int kRows, int kVectors>
void rows_of_registers(const Rows& rows, const Opened& opened, const Panel& panel, int64_t g, int64_t first, float* y) {
    const int64_t group = wide_group(rows), stride = opened.stride;
    const uint8_t* weights = opened.values + first * stride + g * group;
    const int8_t* activations = panel.quantized + g * group * panel.lanes;
    y += first * kWideTokens;
    __m512i sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        const int32_t start = kInt4 ? 0 : -128 * sum_bytes(weights + r * stride, group);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_set1_epi32(start);
    }
    for (const uint8_t* const end = weights + group; weights < end; weights += 4, activations += 64 * kVectors) {
        __m512i x[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
            x[v] = _mm512_loadu_si512(activations + 64 * v);
            if (!kInt4) x[v] = _mm512_xor_si512(x[v], _mm512_set1_epi8(-128));
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            int32_t four;
            std::memcpy(&four, weights + r * stride, 4);
            const __m512i w = _mm512_set1_epi32(four);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) add_products<kInt4>(sums[r][v], w, x[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        const __m512 scale = _mm512_set1_ps(scale_at(rows.scales, rows.scale_dtype, (first + r) * rows.groups + g));
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
            float* to = y + r * kWideTokens + v * kLanes;
            const __m512 scales = _mm512_loadu_ps(panel.scales + g * panel.lanes + v * kLanes);
            const __m512 sum = _mm512_cvtepi32_ps(sums[r][v]);
            if constexpr (kInt4) {
                const __m512 correction = _mm512_loadu_ps(panel.corrections + g * panel.lanes + v * kLanes);
                const __m512 value = _mm512_fmadd_ps(sum, scales, correction);
                _mm512_storeu_ps(to, g == 0 ? _mm512_mul_ps(value, scale)
                                            : _mm512_fmadd_ps(value, scale, _mm512_loadu_ps(to)));
            } else {
                _mm512_storeu_ps(to, _mm512_mul_ps(sum, _mm512_mul_ps(scale, scales)));
            }
        }
    }
}

template <bool kInt4, int kVectors>
void multiply_vectors(const Rows& rows, const Opened& opened, const Panel& panel, float* y) {
    for (int64_t g = 0; g < rows.groups; ++g) {  // a group's activations stay in the first cache for all rows
        int64_t r = 0;
        for (; r + kRowsAtOnce <= rows.count; r += kRowsAtOnce)
            rows_of_registers<kInt4, kRowsAtOnce, kVectors>(rows, opened, panel, g, r, y);
        for (; r < rows.count; ++r) rows_of_registers<kInt4, 1, kVectors>(rows, opened, panel, g, r, y);
    }
}

template <bool kInt4>
void multiply_format(const Rows& rows, const Opened& opened, const Panel& panel, float* y) {
    if (panel.lanes == kLanes)
        multiply_vectors<kInt4, 1>(rows, opened, panel, y);
    else
        multiply_vectors<kInt4, 2>(rows, opened, panel, y);
}

void multiply_wide(const Rows& rows, const Opened& opened, const Panel& panel, float* y) {
    if (rows.format == KIMI_INT4)
        multiply_format<true>(rows, opened, panel, y);
    else
        multiply_format<false>(rows, opened, panel, y);
}

}  // namespace
}  // namespace kimi
