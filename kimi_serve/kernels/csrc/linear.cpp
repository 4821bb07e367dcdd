// y = x W^T over all threads. Knows panels and blocks of rows; never how a path multiplies.
#include "work.h"

namespace kimi {
namespace {

constexpr int64_t kBlockRows = 64;

struct Linear {
    const kimi_linear_call& call;
    const kimi_matrix& matrix;
    const Path& path;
    Shape shape;
    Rows rows;
    char* joined;  // a token's heads side by side, where there is something between them
    Quantized tokens;
    Slice* slices;
    Panels activations;
    Room room;
    int64_t panels;
    bool has_wide;

    explicit Linear(const kimi_linear_call& c)
        : call(c),
          matrix(c.matrix),
          path(chosen_path()),
          shape{matrix.columns, matrix.group, static_cast<int>(matrix.format), matrix.exact != 0},
          rows(make_rows(shape, static_cast<int>(matrix.scale_dtype), matrix.weights, matrix.scales, matrix.rows)),
          joined(nullptr),
          tokens{},
          slices(nullptr),
          activations{},
          room{},
          panels(0),
          has_wide(false) {}

    int64_t x_bytes() const { return call.dtype == KIMI_BFLOAT16 ? 2 : 4; }
    bool has_gaps() const { return call.heads * call.head_width != matrix.columns; }

    int64_t lay_out(char* base) {
        Layout layout(base);
        joined = layout.take<char>(has_gaps() ? call.tokens * matrix.columns * x_bytes() : 0);
        tokens.lay_out(layout, shape, call.tokens);
        slices = layout.take<Slice>(Cutter::most_slices(call.tokens, 1));
        activations.lay_out(layout, shape, call.tokens, 1);
        room.lay_out(layout, shape, path, kBlockRows);
        return layout.used();
    }

    void cut() {
        Cutter cutter(path, shape);
        panels = cutter.cut(0, static_cast<int32_t>(call.tokens), slices) - slices;
        has_wide = slices[0].lanes > 0;
    }

    const char* token_at(int64_t token) const {
        const char* from = static_cast<const char*>(call.x) + token * call.heads * call.head_width * x_bytes();
        if (!has_gaps()) return from;
        const int64_t run = matrix.columns / call.heads * x_bytes();
        char* to = joined + token * matrix.columns * x_bytes();
        for (int64_t head = 0; head < call.heads; ++head)
            std::memcpy(to + head * run, from + head * call.head_width * x_bytes(), static_cast<size_t>(run));
        return to;
    }

    void fill(int64_t index) const {
        const Panel to = activations.at(shape, slices[index]);
        clear_factors(to, shape);
        for (int t = 0; t < to.tokens; ++t) {
            const int64_t token = slices[index].first + t;
            const char* from = token_at(token);
            if (shape.is_float) {
                place_float(to, shape, t, from, static_cast<int>(call.dtype), 0);
                continue;
            }
            int8_t* values = tokens.values + token * shape.padded();
            float* scales = tokens.scales + token * shape.groups();
            float* corrections = tokens.corrections + token * shape.groups();
            path.quantize(from, static_cast<int>(call.dtype), matrix.columns, matrix.group,
                          matrix.format == KIMI_INT4, values, scales, corrections);
            place_quantized(to, shape, t, values, scales, corrections);
        }
    }

    void compute(int64_t index) const {
        const int64_t first = index * kBlockRows;
        const int64_t count = matrix.rows - first < kBlockRows ? matrix.rows - first : kBlockRows;
        const Block block(path, rows.from(first, count), shape, has_wide, room);
        alignas(64) float y[kBlockRows * kWideTokens];
        for (const Slice* slice = slices; slice < slices + panels; ++slice) {
            const Panel from = activations.at(shape, *slice);
            block.multiply(from, y);
            for (int t = 0; t < from.tokens; ++t)
                store(y + t, Block::pitch(from), (slice->first + t) * matrix.rows + first, count);
        }
    }

    void store(const float* y, int64_t pitch, int64_t offset, int64_t count) const {
        if (call.y_dtype == KIMI_BFLOAT16) {
            auto* to = static_cast<uint16_t*>(call.y) + offset;
            for (int64_t r = 0; r < count; ++r) to[r] = to_bf16(y[r * pitch]);
        } else {
            auto* to = static_cast<float*>(call.y) + offset;
            for (int64_t r = 0; r < count; ++r) to[r] = y[r * pitch];
        }
    }
};

thread_local Workspace workspace;

kimi_status check(const kimi_linear_call& call, const Shape& shape) {
    if (call.tokens < 0 || call.tokens > INT32_MAX || call.heads < 1 || shape.columns % call.heads) return KIMI_BAD_SIZE;
    if (call.head_width < shape.columns / call.heads) return KIMI_BAD_SIZE;
    return check_shape(shape, call.matrix.rows);
}

}  // namespace
}  // namespace kimi

extern "C" int kimi_linear(const kimi_linear_call* call) {
    using namespace kimi;
    Linear work(*call);
    const kimi_status status = check(*call, work.shape);
    if (status != KIMI_OK || call->tokens == 0) return status;
    if (!workspace.reserve(work.lay_out(nullptr))) return KIMI_NO_MEMORY;
    work.lay_out(workspace.memory());
    work.cut();
    const int64_t blocks = (call->matrix.rows + kBlockRows - 1) / kBlockRows;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t index = 0; index < work.panels; ++index) work.fill(index);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t block = 0; block < blocks; ++block) work.compute(block);
    }
    return KIMI_OK;
}
