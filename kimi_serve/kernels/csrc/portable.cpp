// The path for any CPU: plain loops. Also what the others are compared with.
#include "path.h"

#include "elementwise.inl"
#include "wide.inl"

namespace kimi {
namespace {

bool always() { return true; }

// Sum of products of one token's block and the same columns of a row.
int32_t dot(const int8_t* activations, const int8_t* weights, int count) {
    int32_t sum = 0;
    for (int i = 0; i < count; ++i) sum += static_cast<int32_t>(activations[i]) * weights[i];
    return sum;
}

void row_int4(const Rows& rows, const uint8_t* data, const void* scales, const Panel& panel, float* y) {
    const int half = rows.group == 32 ? 16 : 32;
    for (int t = 0; t < panel.tokens; ++t) y[t] = 0.0f;
    const int8_t* activations = panel.quantized;
    for (int64_t g = 0; g < rows.groups; ++g) {
        const float scale = scale_at(scales, rows.scale_dtype, g);
        int32_t sums[kPanelTokens] = {};
        for (int64_t done = 0; done < rows.group; done += 2 * half, data += half) {
            int8_t apart[64];
            for (int i = 0; i < half; ++i) {
                apart[i] = static_cast<int8_t>((data[i] & 15) - 8);
                apart[half + i] = static_cast<int8_t>((data[i] >> 4) - 8);
            }
            for (int part = 0; part < 2 * half; part += kBlock)
                for (int t = 0; t < panel.tokens; ++t, activations += kBlock)
                    sums[t] += dot(activations, apart + part, kBlock);
        }
        for (int t = 0; t < panel.tokens; ++t)
            y[t] += static_cast<float>(sums[t]) * (scale * panel.scales[g * kPanelTokens + t]);
    }
}

void row_int8(const Rows& rows, const uint8_t* data, const void* scales, const Panel& panel, float* y) {
    const auto* weights = reinterpret_cast<const int8_t*>(data);
    const int8_t* activations = panel.quantized;
    int32_t sums[kPanelTokens] = {};
    for (int64_t k = 0; k < rows.columns; k += kBlock) {
        const int count = static_cast<int>(rows.columns - k < kBlock ? rows.columns - k : kBlock);
        for (int t = 0; t < panel.tokens; ++t, activations += kBlock) sums[t] += dot(activations, weights + k, count);
    }
    const float scale = scale_at(scales, rows.scale_dtype, 0);
    for (int t = 0; t < panel.tokens; ++t) y[t] = static_cast<float>(sums[t]) * (scale * panel.scales[t]);
}

float weight_at(const Rows& rows, const uint8_t* data, const void* scales, int64_t k) {
    if (rows.format == KIMI_BF16) return from_bf16(reinterpret_cast<const uint16_t*>(data)[k]);
    if (rows.format == KIMI_F32) return reinterpret_cast<const float*>(data)[k];
    if (rows.format == KIMI_INT8)
        return static_cast<float>(reinterpret_cast<const int8_t*>(data)[k]) * scale_at(scales, rows.scale_dtype, 0);
    const int stored = (data[k / 2] >> (4 * (k & 1))) & 15;
    return static_cast<float>(stored - 8) * scale_at(scales, rows.scale_dtype, k / rows.group);
}

void row_float(const Rows& rows, const uint8_t* data, const void* scales, const Panel& panel, float* y) {
    for (int t = 0; t < panel.tokens; ++t) y[t] = 0.0f;
    for (int64_t k = 0; k < rows.columns; ++k) {
        const float weight = weight_at(rows, data, scales, k);
        const float* block = panel.values + (k / kFloatBlock) * kFloatBlock * panel.tokens + k % kFloatBlock;
        for (int t = 0; t < panel.tokens; ++t) y[t] += weight * block[t * kFloatBlock];
    }
}

void multiply(const Rows& rows, const Panel& panel, float* y) {
    for (int64_t r = 0; r < rows.count; ++r, y += kPanelTokens) {
        const Rows row = rows.from(r, 1);
        if (panel.values)
            row_float(rows, row.data, row.scales, panel, y);
        else if (rows.format == KIMI_INT4)
            row_int4(rows, row.data, row.scales, panel, y);
        else
            row_int8(rows, row.data, row.scales, panel, y);
    }
}

}  // namespace

const Path kPortable = {"portable", always, multiply, quantize_values, gate_values, open_rows, multiply_plain};

}  // namespace kimi
