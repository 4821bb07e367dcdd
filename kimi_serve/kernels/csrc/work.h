// Memory that calls share, and panels in it. Knows sizes; never weights.
#pragma once
#include <cstdlib>

#if defined(_OPENMP)
#include <omp.h>
#endif

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
    int64_t narrow() const { return round_up(columns, kBlock); }
    int64_t padded() const { return is_float ? round_up(columns, kFloatBlock) : wide_columns(columns); }
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

// Consecutive activation rows that one panel holds.
struct Slice {
    int32_t first, tokens;
    int32_t lanes;    // 0, or a wide panel's
    int64_t place;    // rows that earlier panels take, lanes without a token among them
    int64_t factors;  // lanes that earlier panels take of scales
};

// Cuts runs of activation rows into panels, wide ones first: as many full ones as there are, then what costs least.
class Cutter {
public:
    Cutter(const Path& path, const Shape& shape)
        : least_(!path.open || shape.is_float    ? INT32_MAX
                 : shape.format == KIMI_INT4 ? 13  // opening int4 costs about what two narrow panels do
                                             : kPanelTokens + 1) {}

    static int64_t most_slices(int64_t rows, int64_t runs) { return rows / kPanelTokens + runs; }
    static int64_t most_rows(const Shape& shape, int64_t rows) {  // nine tokens take sixteen lanes
        return shape.is_float ? rows : 2 * rows;
    }
    static int64_t most_factors(int64_t rows, int64_t runs) { return 2 * rows + kPanelTokens * most_slices(rows, runs); }

    Slice* cut(int32_t first, int32_t count, Slice* to) {
        while (count) {
            const int32_t lanes = lanes_for(count);
            const int32_t most = lanes ? lanes : kPanelTokens;
            const int32_t tokens = count < most ? count : most;
            *to++ = {first, tokens, lanes, place_, factors_};
            place_ += lanes ? lanes : tokens;
            factors_ += most;
            first += tokens;
            count -= tokens;
        }
        return to;
    }

private:
    int32_t lanes_for(int32_t count) const {
        if (count < least_) return 0;
        return count > kLanes + kPanelTokens ? kWideTokens : kLanes;
    }

    int32_t least_;
    int64_t place_ = 0, factors_ = 0;
};

// What panels are made of, one after another.
struct Panels {
    char* values;        // (rows, token_bytes) as int8 or float32, interleaved inside a panel
    float* scales;       // per panel (groups, 8 or lanes)
    float* corrections;

    void lay_out(Layout& layout, const Shape& shape, int64_t rows, int64_t runs) {
        values = layout.take<char>(Cutter::most_rows(shape, rows) * shape.token_bytes());
        const int64_t factors = shape.is_float ? 0 : Cutter::most_factors(rows, runs) * shape.groups();
        scales = layout.take<float>(factors);
        corrections = layout.take<float>(factors);
    }

    Panel at(const Shape& shape, const Slice& slice) const {
        char* place = values + slice.place * shape.token_bytes();
        if (shape.is_float) return {slice.tokens, 0, nullptr, reinterpret_cast<float*>(place), nullptr, nullptr};
        const int64_t factors = slice.factors * shape.groups();
        return {slice.tokens, slice.lanes, reinterpret_cast<int8_t*>(place), nullptr, scales + factors,
                corrections + factors};
    }
};

// One token into its place in a panel, from the quantizer's row or from float32 or bfloat16 values.
inline void place_quantized(const Panel& panel, const Shape& shape, int token, const int8_t* values,
                            const float* scales, const float* corrections) {
    const int step = panel.lanes ? 4 : kBlock, across = panel.lanes ? panel.lanes : panel.tokens;
    auto* to = const_cast<int8_t*>(panel.quantized) + step * token;
    if (panel.lanes)
        for (int64_t k = 0; k < shape.padded(); k += 4, to += 4 * across) std::memcpy(to, values + k, 4);
    else
        for (int64_t k = 0; k < shape.narrow(); k += kBlock, to += kBlock * across) std::memcpy(to, values + k, kBlock);
    const int pitch = panel.lanes ? panel.lanes : kPanelTokens;
    auto* panel_scales = const_cast<float*>(panel.scales);
    auto* panel_corrections = const_cast<float*>(panel.corrections);
    for (int64_t g = 0; g < shape.groups(); ++g) {
        panel_scales[g * pitch + token] = scales[g];
        panel_corrections[g * pitch + token] = shape.format == KIMI_INT4 ? corrections[g] : 0.0f;
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

// Factors of tokens that a panel lacks: read by whole-register loads, never used.
inline void clear_factors(const Panel& panel, const Shape& shape) {
    if (panel.values) return;
    const auto bytes = static_cast<size_t>(shape.groups() * (panel.lanes ? panel.lanes : kPanelTokens)) * 4;
    std::memset(const_cast<float*>(panel.scales), 0, bytes);
    std::memset(const_cast<float*>(panel.corrections), 0, bytes);
}

inline int64_t thread_count() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

inline int64_t this_thread() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Where each thread opens the block of rows that it has at hand.
struct Room {
    uint8_t* values;  // (threads, rows, columns)
    int64_t rows;

    void lay_out(Layout& layout, const Shape& shape, const Path& path, int64_t most_rows) {
        rows = path.open && !shape.is_float ? most_rows : 0;
        values = layout.take<uint8_t>(thread_count() * rows * wide_columns(shape.columns));
    }
};

// The rows that one task multiplies with all panels of a run, opened once where there are wide ones.
class Block {
public:
    Block(const Path& path, const Rows& rows, const Shape& shape, bool has_wide, const Room& room) : path_(path), rows_(rows) {
        if (has_wide) opened_ = path.open(rows, room.values + this_thread() * room.rows * wide_columns(shape.columns));
    }

    // y[row * pitch(panel) + token]
    void multiply(const Panel& panel, float* y) const {
        if (panel.lanes)
            path_.multiply_wide(rows_, opened_, panel, y);
        else
            path_.multiply(rows_, panel, y);
    }

    static int64_t pitch(const Panel& panel) { return panel.lanes ? kWideTokens : kPanelTokens; }

private:
    const Path& path_;
    Rows rows_;
    Opened opened_{};
};

kimi_status check_shape(const Shape& shape, int64_t rows);
Rows make_rows(const Shape& shape, int scale_dtype, const void* data, const void* scales, int64_t count);

}  // namespace kimi
