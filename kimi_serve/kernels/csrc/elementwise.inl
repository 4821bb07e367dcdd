// Quantization and the gate, in plain C++ that a compiler vectorizes: every path includes it under its own target.
// Every step is one rounding in float32 (no contraction), so all paths give the same bits.

namespace {

constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
constexpr float kSmallest = 1e-30f;      // activations below it count as zero: 127 / it must be finite

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// exp(x) for |x| <= 88.7, within 2 units in the last place: x = n ln 2 + r, exp(r) by a polynomial.
inline float bounded_exp(float x) {
    const float shifted = x * 1.44269504088896341f + kRounder;
    const float n = shifted - kRounder;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float fraction = (p * (r * r) + r) + 1.0f;
    return fraction * float_of((bits_of(shifted) + 127u) << 23);
}

// x / (1 + exp(-x)) with the overflow that float32 has: -inf becomes NaN, as in torch.
void gate_values(float* gate, const float* up, int64_t count) {
    const float infinity = float_of(0x7f800000u);
    for (int64_t i = 0; i < count; ++i) {
        const float x = gate[i];
        float inner = -x;
        inner = inner < -87.0f ? -87.0f : inner;
        inner = inner > 88.0f ? 88.0f : inner;
        const float e = -x > 88.0f ? infinity : bounded_exp(inner);
        gate[i] = x / (1.0f + e) * up[i];
    }
}

template <typename T>
inline float as_float(T value);
template <>
inline float as_float<float>(float value) { return value; }
template <>
inline float as_float<uint16_t>(uint16_t value) { return float_of(static_cast<uint32_t>(value) << 16); }

// `count` values by one scale into natural order; the sum of the quantized.
template <typename T>
float quantize_run(const T* x, int64_t count, int8_t* q, int32_t& sum) {
    sum = 0;
    if (count < 1) return 0.0f;
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t magnitude = bits_of(as_float<T>(x[i])) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    const float limit = float_of(largest);
    const bool finite = largest < 0x7f800000u;
    if (!finite || limit < kSmallest) {
        std::memset(q, 0, static_cast<size_t>(count));
        return finite ? 0.0f : float_of(0x7fc00000u);
    }
    const float inverse = 127.0f / limit;
    int32_t total = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float scaled = as_float<T>(x[i]) * inverse;
        const auto value = static_cast<int8_t>(bits_of(scaled + kRounder));
        q[i] = value;
        total += value;
    }
    sum = total;
    return limit / 127.0f;
}

inline void even_before_odd(const int8_t* natural, int half, int8_t* q) {
    for (int i = 0; i < half; ++i) q[i] = natural[2 * i];
    for (int i = 0; i < half; ++i) q[half + i] = natural[2 * i + 1];
}

template <typename T>
void quantize_token(const T* x, int64_t columns, int64_t group, bool int4, int8_t* q, float* scales,
                    float* corrections) {
    int32_t sum = 0;
    if (!int4) {
        scales[0] = quantize_run(x, columns, q, sum);
        std::memset(q + columns, 0, static_cast<size_t>(kimi::wide_columns(columns) - columns));
        return;
    }
    int8_t natural[128];
    const int half = group == 32 ? 16 : 32;
    for (int64_t first = 0, g = 0; first < columns; first += group, ++g) {
        scales[g] = quantize_run(x + first, group, natural, sum);
        corrections[g] = -8.0f * static_cast<float>(sum) * scales[g];
        for (int64_t i = 0; i < group; i += 2 * half) even_before_odd(natural + i, half, q + first + i);
    }
}

void quantize_values(const void* x, int dtype, int64_t columns, int64_t group, bool int4, int8_t* q, float* scales,
                     float* corrections) {
    if (dtype == KIMI_BFLOAT16)
        quantize_token(static_cast<const uint16_t*>(x), columns, group, int4, q, scales, corrections);
    else
        quantize_token(static_cast<const float*>(x), columns, group, int4, q, scales, corrections);
}

}  // namespace
