// One token in registers of 512 bits: what counts is how few instructions stand between memory and the next load.
// Included by vnni.cpp alone.

namespace kimi {
namespace {

constexpr int kScales = 16;  // of a row, at a time

// Scales first .. first + 15 of a row as float32; zeros past the last.
inline __m512 row_scales(const Rows& rows, int64_t row, int64_t first) {
    const int64_t left = rows.groups - first;
    const auto mask = static_cast<__mmask16>(left < kScales ? (1u << left) - 1 : 0xffffu);
    const int64_t at = row * rows.groups + first;
    if (rows.scale_dtype != KIMI_BFLOAT16)
        return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(rows.scales) + at);
    const __m256i halves = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(rows.scales) + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// 32 bytes of nibbles: the low ones, then the high ones, as a panel has the columns.
inline __m512i unpack(const uint8_t* data) {
    const __m512i both = _mm512_broadcast_i64x4(load(data));
    const __m512i apart = _mm512_srlv_epi64(both, _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0));
    return _mm512_and_si512(apart, _mm512_set1_epi8(15));
}

// A group has 64 * kUnits columns. `scales` and `corrections` are the token's, one a group, zeros after the last.
template <int kUnits>
void single_int4(const Rows& rows, const int8_t* activations, const float* scales, const float* corrections, float* y) {
    for (int64_t r = 0; r < rows.count; ++r, y += kPanelTokens) {
        const uint8_t* data = rows.data + r * rows.row_bytes;
        const int8_t* x = activations;
        __m512 sums = _mm512_setzero_ps(), corrected = _mm512_setzero_ps();
        for (int64_t first = 0; first < rows.groups; first += kScales) {
            const __m512 of_row = row_scales(rows, r, first);
            corrected = _mm512_fmadd_ps(of_row, _mm512_loadu_ps(corrections + first), corrected);
            alignas(64) float both[kScales];
            _mm512_store_ps(both, _mm512_mul_ps(of_row, _mm512_loadu_ps(scales + first)));
            const int here = static_cast<int>(rows.groups - first < kScales ? rows.groups - first : kScales);
            for (int g = 0; g < here; ++g, data += 32 * kUnits, x += 64 * kUnits) {
                _mm_prefetch(reinterpret_cast<const char*>(data) + kFar, _MM_HINT_T0);
                __m512i products = _mm512_setzero_si512();
                for (int i = 0; i < kUnits; ++i)
                    products = _mm512_dpbusd_epi32(products, unpack(data + 32 * i), _mm512_loadu_si512(x + 64 * i));
                sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_set1_ps(both[g]), sums);
            }
        }
        y[0] = _mm512_reduce_add_ps(_mm512_add_ps(sums, corrected));
    }
}

// The weights are signed, so the activations become unsigned by 128 more, and 128 times the weights' sum is taken off.
void single_int8(const Rows& rows, const int8_t* activations, float scale, float* y) {
    const __m512i ones = _mm512_set1_epi8(1), sign = _mm512_set1_epi8(-128);
    for (int64_t r = 0; r < rows.count; ++r, y += kPanelTokens) {
        const uint8_t* data = rows.data + r * rows.row_bytes;
        __m512i products = _mm512_setzero_si512(), weights = _mm512_setzero_si512();
        for (int64_t k = 0; k < rows.columns; k += kWideBlock) {
            _mm_prefetch(reinterpret_cast<const char*>(data + k) + kFar, _MM_HINT_T0);
            const int64_t left = rows.columns - k;
            const auto mask = left < kWideBlock ? (__mmask64{1} << left) - 1 : ~__mmask64{0};
            const __m512i w = _mm512_maskz_loadu_epi8(mask, data + k);
            const __m512i x = _mm512_xor_si512(_mm512_loadu_si512(activations + k), sign);
            products = _mm512_dpbusd_epi32(products, x, w);
            weights = _mm512_dpbusd_epi32(weights, ones, w);
        }
        const int32_t sum = _mm512_reduce_add_epi32(_mm512_sub_epi32(products, _mm512_slli_epi32(weights, 7)));
        y[0] = static_cast<float>(sum) * (scale_at(rows.scales, rows.scale_dtype, r) * scale);
    }
}

void multiply_single(const Rows& rows, const Panel& panel, float* y) {
    if (rows.format == KIMI_INT8) return single_int8(rows, panel.quantized, panel.scales[0], y);
    constexpr int64_t kMostGroups = 1024;  // 65536 columns in groups of 64
    alignas(64) float scales[kMostGroups + kScales], corrections[kMostGroups + kScales];
    const int64_t padded = round_up(rows.groups, kScales);
    for (int64_t g = 0; g < padded; ++g) {
        scales[g] = g < rows.groups ? panel.scales[g * kPanelTokens] : 0.0f;
        corrections[g] = g < rows.groups ? panel.corrections[g * kPanelTokens] : 0.0f;
    }
    if (rows.group == 128)
        single_int4<2>(rows, panel.quantized, scales, corrections, y);
    else
        single_int4<1>(rows, panel.quantized, scales, corrections, y);
}

void multiply_narrow(const Rows& rows, const Panel& panel, float* y) {
    const bool fits = rows.format == KIMI_INT8 || rows.group >= kWideBlock;
    if (panel.tokens == 1 && !panel.values && fits)
        multiply_single(rows, panel, y);
    else
        multiply(rows, panel, y);
}

}  // namespace
}  // namespace kimi
