// Wide panels in registers of 512 bits: one instruction adds four columns' products of sixteen tokens. Included by
// vnni.cpp alone.

namespace kimi {
namespace {

constexpr int kRowsAtOnce = 8;  // times two registers of tokens: sixteen sums, so that none waits for itself

// kRows rows of one group times kVectors registers of tokens.
template <int kRows, int kVectors>
inline void sum_group(const int8_t* weights, int64_t stride, const int8_t* activations, int64_t group,
                      __m512i (&sums)[kRows][kVectors]) {
    for (int64_t k = 0; k < group; k += 4, activations += 64 * kVectors) {
        __m512i x[kVectors];
        for (int v = 0; v < kVectors; ++v) x[v] = _mm512_loadu_si512(activations + 64 * v);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            int32_t four;
            std::memcpy(&four, weights + r * stride + k, 4);
            const __m512i w = _mm512_set1_epi32(four);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], x[v], w);
        }
    }
}

template <int kRows, int kVectors>
void rows_of_registers(const Rows& rows, const Opened& opened, const Panel& panel, int64_t first, float* y) {
    const int64_t group = wide_group(rows);
    const int8_t* weights = opened.values + first * opened.stride;
    y += first * kWideTokens;
    for (int64_t g = 0; g < rows.groups; ++g) {
        __m512i sums[kRows][kVectors];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v)
                sums[r][v] = _mm512_set1_epi32(opened.starts[(first + r) * rows.groups + g]);
        sum_group<kRows, kVectors>(weights + g * group, opened.stride, panel.quantized + g * group * panel.lanes, group,
                                   sums);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const __m512 scale = _mm512_set1_ps(scale_at(rows.scales, rows.scale_dtype, (first + r) * rows.groups + g));
            for (int v = 0; v < kVectors; ++v) {
                float* to = y + r * kWideTokens + v * kLanes;
                const __m512 scales = _mm512_loadu_ps(panel.scales + g * panel.lanes + v * kLanes);
                const __m512 value = _mm512_cvtepi32_ps(sums[r][v]), factor = _mm512_mul_ps(scale, scales);
                _mm512_storeu_ps(to, g == 0 ? _mm512_mul_ps(value, factor)
                                            : _mm512_fmadd_ps(value, factor, _mm512_loadu_ps(to)));
            }
        }
    }
}

template <int kVectors>
void multiply_vectors(const Rows& rows, const Opened& opened, const Panel& panel, float* y) {
    int64_t r = 0;
    for (; r + kRowsAtOnce <= rows.count; r += kRowsAtOnce)
        rows_of_registers<kRowsAtOnce, kVectors>(rows, opened, panel, r, y);
    for (; r < rows.count; ++r) rows_of_registers<1, kVectors>(rows, opened, panel, r, y);
}

void multiply_wide(const Rows& rows, const Opened& opened, const Panel& panel, float* y) {
    if (panel.lanes == kLanes)
        multiply_vectors<1>(rows, opened, panel, y);
    else
        multiply_vectors<2>(rows, opened, panel, y);
}

}  // namespace
}  // namespace kimi
