// One instruction set's work: rows of weights times a panel of tokens. Knows memory layouts; never threads or experts.
#pragma once
#include <cstdint>
#include <cstring>

#include "kimi_kernels.h"

namespace kimi {

constexpr int kPanelTokens = 8;  // as many accumulators as fit the sixteen registers of AVX2 beside the weights
constexpr int kBlock = 32;       // bytes of quantized activations that one token has side by side in a panel
constexpr int kFloatBlock = 8;   // the same for float activations
constexpr int kLanes = 16;       // tokens side by side in a wide panel's registers or tiles
constexpr int kWideTokens = 32;  // the most that a wide panel has
constexpr int kWideBlock = 64;   // columns that a wide panel's rows are filled up to

// Consecutive rows of one matrix.
struct Rows {
    int format;
    int scale_dtype;
    int64_t group;    // columns a scale; others: all columns
    int64_t columns;
    int64_t count;
    const uint8_t* data;
    const void* scales;
    int64_t row_bytes;
    int64_t groups;  // scales a row

    Rows from(int64_t first, int64_t rows) const {
        Rows part = *this;
        const int64_t width = scale_dtype == KIMI_BFLOAT16 ? 2 : 4;
        part.count = rows;
        part.data = data + first * row_bytes;
        part.scales = static_cast<const char*>(scales) + first * groups * width;
        return part;
    }
};

// Up to eight tokens' activations, interleaved by block: block 0 of every token, block 1 of every token, ...
// Quantized for int4, a group's even columns come before its odd ones (64 at a time; 32 in groups of 32), which is how
// the nibbles of 32 (16) bytes of weights fall apart.
struct Panel {
    int tokens;
    int lanes;                 // 0, or 16 or 32: a wide panel
    const int8_t* quantized;   // null where activations are float
    const float* values;       // null where they are quantized
    const float* scales;       // (groups, 8 or lanes): real value = scale * quantized
    const float* corrections;  // as scales: -8 * scale * sum of quantized, for weights stored + 8
};

// A wide panel serves more than eight tokens: lanes are tokens, so that a weight is broadcast to all of them and no sum
// is left to add up across lanes. Its bytes are (columns / 4, lanes, 4); lanes past `tokens` hold anything. Its rows are
// opened first, once for all panels of an expert: a byte a weight, columns in a panel's order, zeros after the last.
struct Opened {
    const uint8_t* values;  // int4: stored + 8; int8: two's complement
    int64_t stride;         // bytes a row
};

using MultiplyWide = void (*)(const Rows& rows, const Opened& opened, const Panel& panel, float* y);

struct Path {
    const char* name;
    bool (*usable)();
    // y[row * 8 + token], tokens past panel.tokens undefined
    void (*multiply)(const Rows& rows, const Panel& panel, float* y);
    // One token: int8 in a panel's column order, a scale and a correction a group; a group that is not finite becomes NaN.
    void (*quantize)(const void* x, int dtype, int64_t columns, int64_t group, bool int4, int8_t* quantized,
                     float* scales, float* corrections);
    void (*gate)(float* gate, const float* up, int64_t count);
    // For wide panels; null where a path has none. open: `space` holds rows.count rows of wide_columns(rows.columns) bytes.
    Opened (*open)(const Rows& rows, uint8_t* space);
    MultiplyWide multiply_wide;  // y[row * 32 + token], tokens past panel.tokens undefined
};

extern const Path kPortable;
#if defined(__x86_64__)
extern const Path kAvx2;
extern const Path kVnni;
extern const Path kAmx;

bool has_amx();
void multiply_amx(const Rows& rows, const Opened& opened, const Panel& panel, float* y);
#endif

const Path& chosen_path();

inline float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // stays NaN
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float scale_at(const void* scales, int dtype, int64_t index) {
    return dtype == KIMI_BFLOAT16 ? from_bf16(static_cast<const uint16_t*>(scales)[index])
                                  : static_cast<const float*>(scales)[index];
}

inline float value_of(float value) { return value; }
inline float value_of(uint16_t bits) { return from_bf16(bits); }
inline void put(float* to, float value) { *to = value; }
inline void put(uint16_t* to, float value) { *to = to_bf16(value); }

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
inline int64_t wide_columns(int64_t columns) { return round_up(columns, kWideBlock); }

}  // namespace kimi
