// Rows times a panel in registers of 256 bits: what the paths for x86 share. Included under the target of each, which
// then defines the two products that differ. One side of integer products is unsigned: int4 is (stored + 8), int8 lends
// its sign to the activations.

namespace kimi {
namespace {

constexpr int64_t kFar = 1024;  // bytes ahead of the row being read

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline float sum_of(__m256 v) {
    __m128 low = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    low = _mm_add_ps(low, _mm_movehl_ps(low, low));
    return _mm_cvtss_f32(_mm_add_ss(low, _mm_shuffle_ps(low, low, 1)));
}

inline int32_t sum_of(__m256i v) {
    __m128i low = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    low = _mm_add_epi32(low, _mm_shuffle_epi32(low, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(low, _mm_shuffle_epi32(low, 0xb1)));
}

// The nibbles of one group as kVectors registers of unsigned bytes, in a panel's column order.
template <int kVectors>
inline void unpack(const uint8_t* data, __m256i* w) {
    const __m256i mask = _mm256_set1_epi8(15);
    if constexpr (kVectors == 1) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
        w[0] = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), mask);
    } else {
        for (int i = 0; i < kVectors; i += 2) {
            const __m256i packed = load(data + 16 * i);
            w[i] = _mm256_and_si256(packed, mask);
            w[i + 1] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
        }
    }
}

// What the instruction sets differ in, defined by whoever includes this file.
// Sums of products of one token and one group, in 32-bit lanes; w is unsigned, at most 15.
template <int kVectors>
inline __m256i dot(const __m256i* w, const int8_t* activations, int64_t stride);
// sum + products of four neighbours in each lane; magnitude is unsigned, at most 128, and |lent| at most 127.
inline __m256i add_products(__m256i sum, __m256i magnitude, __m256i lent);

template <int kVectors, int kTokens>
void rows_int4(const Rows& rows, const Panel& panel, float* y) {
    for (int64_t r = 0; r < rows.count; ++r, y += kPanelTokens) {
        const uint8_t* data = rows.data + r * rows.row_bytes;
        const int64_t first = r * rows.groups;
        const int8_t* activations = panel.quantized;
        __m256 sums[kTokens];
        for (int t = 0; t < kTokens; ++t) sums[t] = _mm256_setzero_ps();
        __m256 corrections = _mm256_setzero_ps();
        for (int64_t g = 0; g < rows.groups; ++g, data += 16 * kVectors, activations += kBlock * kVectors * kTokens) {
            _mm_prefetch(reinterpret_cast<const char*>(data) + kFar, _MM_HINT_T0);
            const __m256 scale = _mm256_set1_ps(scale_at(rows.scales, rows.scale_dtype, first + g));
            alignas(32) float both[kPanelTokens];
            _mm256_store_ps(both, _mm256_mul_ps(scale, _mm256_loadu_ps(panel.scales + g * kPanelTokens)));
            corrections = _mm256_fmadd_ps(scale, _mm256_loadu_ps(panel.corrections + g * kPanelTokens), corrections);
            __m256i w[kVectors];
            unpack<kVectors>(data, w);
            for (int t = 0; t < kTokens; ++t) {
                const __m256i products = dot<kVectors>(w, activations + kBlock * t, kBlock * kTokens);
                sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_broadcast_ss(both + t), sums[t]);
            }
        }
        alignas(32) float corrected[kPanelTokens];
        _mm256_store_ps(corrected, corrections);
        for (int t = 0; t < kTokens; ++t) y[t] = corrected[t] + sum_of(sums[t]);
    }
}

// The weights lend their sign to the activations: one side of the products must be unsigned.
template <int kTokens>
inline void add_int8(__m256i w, const int8_t* activations, __m256i* sums) {
    const __m256i magnitude = _mm256_abs_epi8(w);
    for (int t = 0; t < kTokens; ++t)
        sums[t] = add_products(sums[t], magnitude, _mm256_sign_epi8(load(activations + kBlock * t), w));
}

template <int kTokens>
void rows_int8(const Rows& rows, const Panel& panel, float* y) {
    for (int64_t r = 0; r < rows.count; ++r, y += kPanelTokens) {
        const uint8_t* data = rows.data + r * rows.row_bytes;
        const int8_t* activations = panel.quantized;
        __m256i sums[kTokens];
        for (int t = 0; t < kTokens; ++t) sums[t] = _mm256_setzero_si256();
        int64_t k = 0;
        for (; k + kBlock <= rows.columns; k += kBlock, activations += kBlock * kTokens) {
            _mm_prefetch(reinterpret_cast<const char*>(data + k) + kFar, _MM_HINT_T0);
            add_int8<kTokens>(load(data + k), activations, sums);
        }
        if (k < rows.columns) {
            alignas(32) uint8_t rest[kBlock] = {};
            std::memcpy(rest, data + k, static_cast<size_t>(rows.columns - k));
            add_int8<kTokens>(load(rest), activations, sums);
        }
        const float scale = scale_at(rows.scales, rows.scale_dtype, r);
        for (int t = 0; t < kTokens; ++t) y[t] = static_cast<float>(sum_of(sums[t])) * (scale * panel.scales[t]);
    }
}

inline __m256 widened(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }

// Thirty-two weights as float32 in natural order; `count` of them exist, the rest become zero.
void widen_int4(const uint8_t* data, float scale, float* out) {
    const __m128i mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
    const __m128i even = _mm_and_si128(packed, mask), odd = _mm_and_si128(_mm_srli_epi16(packed, 4), mask);
    const __m128i low = _mm_sub_epi8(_mm_unpacklo_epi8(even, odd), eight);
    const __m128i high = _mm_sub_epi8(_mm_unpackhi_epi8(even, odd), eight);
    const __m256 s = _mm256_set1_ps(scale);
    _mm256_store_ps(out, _mm256_mul_ps(widened(low), s));
    _mm256_store_ps(out + 8, _mm256_mul_ps(widened(_mm_srli_si128(low, 8)), s));
    _mm256_store_ps(out + 16, _mm256_mul_ps(widened(high), s));
    _mm256_store_ps(out + 24, _mm256_mul_ps(widened(_mm_srli_si128(high, 8)), s));
}

void widen_int8(const uint8_t* data, float scale, float* out) {
    const __m256 s = _mm256_set1_ps(scale);
    for (int i = 0; i < 32; i += 8)
        _mm256_store_ps(out + i, _mm256_mul_ps(widened(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(data + i))), s));
}

void widen_bf16(const uint8_t* data, float* out) {
    for (int i = 0; i < 32; i += 8) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 2 * i));
        _mm256_store_ps(out + i, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
    }
}

// Columns k .. k + 31 of row r: in `out`, or where they lie if they are float32 already.
inline const float* widen(const Rows& rows, int64_t r, int64_t k, float* out) {
    const uint8_t* data = rows.data + r * rows.row_bytes;
    const int64_t left = rows.columns - k;
    if (rows.format == KIMI_F32 && left >= 32) return reinterpret_cast<const float*>(data) + k;
    if (rows.format == KIMI_INT4) {
        widen_int4(data + k / 2, scale_at(rows.scales, rows.scale_dtype, r * rows.groups + k / rows.group), out);
        return out;
    }
    const int64_t width = rows.format == KIMI_F32 ? 4 : rows.format == KIMI_BF16 ? 2 : 1;
    alignas(32) uint8_t rest[128];
    const uint8_t* from = data + width * k;
    if (left < 32) {
        std::memset(rest, 0, sizeof(rest));
        std::memcpy(rest, from, static_cast<size_t>(width * left));
        from = rest;
    }
    if (rows.format == KIMI_F32)
        std::memcpy(out, from, 128);
    else if (rows.format == KIMI_BF16)
        widen_bf16(from, out);
    else
        widen_int8(from, scale_at(rows.scales, rows.scale_dtype, r), out);
    return out;
}

// Few tokens take several sums each: a chain of dependent additions would be slower than memory.
template <int kTokens>
void rows_float(const Rows& rows, const Panel& panel, float* y) {
    constexpr int kChains = kTokens == 1 ? 4 : kTokens <= 4 ? 2 : 1;
    const int64_t blocks = round_up(rows.columns, kFloatBlock) / kFloatBlock;
    for (int64_t r = 0; r < rows.count; ++r, y += kPanelTokens) {
        const float* values = panel.values;
        __m256 sums[kTokens][kChains];
        for (int t = 0; t < kTokens; ++t)
            for (int c = 0; c < kChains; ++c) sums[t][c] = _mm256_setzero_ps();
        for (int64_t block = 0; block < blocks; block += 4) {
            alignas(32) float space[32];
            const float* w = widen(rows, r, block * kFloatBlock, space);
            const int here = static_cast<int>(blocks - block < 4 ? blocks - block : 4);
            for (int i = 0; i < here; ++i, values += kFloatBlock * kTokens) {
                const __m256 weights = _mm256_loadu_ps(w + kFloatBlock * i);
                for (int t = 0; t < kTokens; ++t)
                    sums[t][i % kChains] =
                        _mm256_fmadd_ps(weights, _mm256_loadu_ps(values + kFloatBlock * t), sums[t][i % kChains]);
            }
        }
        for (int t = 0; t < kTokens; ++t) {
            __m256 sum = sums[t][0];
            for (int c = 1; c < kChains; ++c) sum = _mm256_add_ps(sum, sums[t][c]);
            y[t] = sum_of(sum);
        }
    }
}

template <int kTokens>
void multiply_tokens(const Rows& rows, const Panel& panel, float* y) {
    if (panel.values)
        rows_float<kTokens>(rows, panel, y);
    else if (rows.format == KIMI_INT8)
        rows_int8<kTokens>(rows, panel, y);
    else if (rows.group == 128)
        rows_int4<4, kTokens>(rows, panel, y);
    else if (rows.group == 64)
        rows_int4<2, kTokens>(rows, panel, y);
    else
        rows_int4<1, kTokens>(rows, panel, y);
}

void multiply(const Rows& rows, const Panel& panel, float* y) {
    using Multiply = void (*)(const Rows&, const Panel&, float*);
    static constexpr Multiply kByTokens[kPanelTokens] = {
        multiply_tokens<1>, multiply_tokens<2>, multiply_tokens<3>, multiply_tokens<4>,
        multiply_tokens<5>, multiply_tokens<6>, multiply_tokens<7>, multiply_tokens<8>};
    kByTokens[panel.tokens - 1](rows, panel, y);
}

}  // namespace
}  // namespace kimi
