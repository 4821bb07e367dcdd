// Memory that calls share, and panels in it. Knows sizes; never weights.
#pragma once
#include <cstdlib>

#include "path.h"

namespace kimi {

// Grows to the largest call and stays: after the first calls nothing is allocated. One a calling thread.
class Workspace {
public:
    ~Workspace() { std::free(memory_); }
    bool reserve(int64_t bytes) {
        if (bytes <= size_) return true;
        std::free(memory_);
        memory_ = std::aligned_alloc(64, static_cast<size_t>(round_up(bytes, 64)));
        size_ = memory_ ? bytes : 0;
        return memory_ != nullptr;
    }
    char* memory() const { return static_cast<char*>(memory_); }

private:
    void* memory_ = nullptr;
    int64_t size_ = 0;
};

// Pieces of a workspace, laid out twice: once to know the size, once to know the places.
class Layout {
public:
    explicit Layout(char* base = nullptr) : base_(base) {}
    template <typename T>
    T* take(int64_t count) {
        char* place = base_ ? base_ + used_ : nullptr;
        used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return reinterpret_cast<T*>(place);
    }
    int64_t used() const { return used_; }

private:
    char* base_;
    int64_t used_ = 0;
};

// What the weights ask of activations.
struct Shape {
    int64_t columns, group;
    int format;
    bool is_float;

    int64_t groups() const { return format == KIMI_INT4 ? columns / group : 1; }
    int64_t padded() const { return round_up(columns, is_float ? kFloatBlock : kBlock); }
    int64_t token_bytes() const { return padded() * (is_float ? 4 : 1); }
};

// Tokens after the quantizer, before panels.
struct Quantized {
    int8_t* values;      // (tokens, padded)
    float* scales;       // (tokens, groups)
    float* corrections;  // (tokens, groups)

    void lay_out(Layout& layout, const Shape& shape, int64_t tokens) {
        values = layout.take<int8_t>(shape.is_float ? 0 : tokens * shape.padded());
        scales = layout.take<float>(shape.is_float ? 0 : tokens * shape.groups());
        corrections = layout.take<float>(shape.is_float ? 0 : tokens * shape.groups());
    }
};

// Panels side by side: panel p holds rows first .. first + tokens - 1 of a list of activation rows.
struct Panels {
    char* values;        // (rows, padded) as int8 or float32, interleaved inside a panel
    float* scales;       // (panels, groups, 8)
    float* corrections;  // (panels, groups, 8)

    void lay_out(Layout& layout, const Shape& shape, int64_t rows, int64_t panels) {
        values = layout.take<char>(rows * shape.token_bytes());
        scales = layout.take<float>(shape.is_float ? 0 : panels * shape.groups() * kPanelTokens);
        corrections = layout.take<float>(shape.is_float ? 0 : panels * shape.groups() * kPanelTokens);
    }

    Panel at(const Shape& shape, int64_t panel, int64_t first, int tokens) const {
        char* place = values + first * shape.token_bytes();
        const int64_t factors = panel * shape.groups() * kPanelTokens;
        return {tokens, shape.is_float ? nullptr : reinterpret_cast<int8_t*>(place),
                shape.is_float ? reinterpret_cast<float*>(place) : nullptr, shape.is_float ? nullptr : scales + factors,
                shape.is_float ? nullptr : corrections + factors};
    }
};

// One token into its place in a panel, from the quantizer's row or from float32 or bfloat16 values.
inline void place_quantized(const Panel& panel, const Shape& shape, int token, const int8_t* values,
                            const float* scales, const float* corrections) {
    auto* to = const_cast<int8_t*>(panel.quantized) + kBlock * token;
    for (int64_t k = 0; k < shape.padded(); k += kBlock, to += kBlock * panel.tokens) std::memcpy(to, values + k, kBlock);
    auto* panel_scales = const_cast<float*>(panel.scales);
    auto* panel_corrections = const_cast<float*>(panel.corrections);
    for (int64_t g = 0; g < shape.groups(); ++g) {
        panel_scales[g * kPanelTokens + token] = scales[g];
        panel_corrections[g * kPanelTokens + token] = shape.format == KIMI_INT4 ? corrections[g] : 0.0f;
    }
}

template <typename T>
void place_values(const Panel& panel, const Shape& shape, int token, const T* x) {
    auto* to = const_cast<float*>(panel.values) + kFloatBlock * token;
    int64_t k = 0;
    for (; k + kFloatBlock <= shape.columns; k += kFloatBlock, to += kFloatBlock * panel.tokens)
        for (int i = 0; i < kFloatBlock; ++i) to[i] = value_of(x[k + i]);
    if (k == shape.columns) return;
    for (int i = 0; i < kFloatBlock; ++i) to[i] = k + i < shape.columns ? value_of(x[k + i]) : 0.0f;
}

inline void place_float(const Panel& panel, const Shape& shape, int token, const void* x, int dtype, int64_t offset) {
    if (dtype == KIMI_BFLOAT16)
        place_values(panel, shape, token, static_cast<const uint16_t*>(x) + offset);
    else
        place_values(panel, shape, token, static_cast<const float*>(x) + offset);
}

// Lanes of tokens that a panel lacks: read by whole-register loads, never used.
inline void clear_factors(const Panel& panel, const Shape& shape) {
    if (panel.values) return;
    std::memset(const_cast<float*>(panel.scales), 0, static_cast<size_t>(shape.groups()) * kPanelTokens * 4);
    std::memset(const_cast<float*>(panel.corrections), 0, static_cast<size_t>(shape.groups()) * kPanelTokens * 4);
}

kimi_status check_shape(const Shape& shape, int64_t rows);
Rows make_rows(const Shape& shape, int scale_dtype, const void* data, const void* scales, int64_t count);

}  // namespace kimi
