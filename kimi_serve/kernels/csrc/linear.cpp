// y = x W^T over all threads. Knows panels and blocks of rows; never how a path multiplies.
#include "work.h"

namespace kimi {
namespace {

constexpr int64_t kBlockRows = 64;

struct Linear {
    const kimi_linear_call& call;
    const Path& path;
    Shape shape;
    Rows rows;
    int64_t panels;
    Quantized tokens;
    Panels activations;

    explicit Linear(const kimi_linear_call& c)
        : call(c),
          path(chosen_path()),
          shape{c.columns, c.group, static_cast<int>(c.format), c.exact != 0},
          rows(make_rows(shape, static_cast<int>(c.scale_dtype), c.weights, c.scales, c.rows)),
          panels((c.tokens + kPanelTokens - 1) / kPanelTokens),
          tokens{},
          activations{} {}

    int64_t lay_out(char* base) {
        Layout layout(base);
        tokens.lay_out(layout, shape, call.tokens);
        activations.lay_out(layout, shape, call.tokens, panels);
        return layout.used();
    }

    Panel panel(int64_t index) const {
        const int64_t first = index * kPanelTokens;
        const int64_t left = call.tokens - first;
        return activations.at(shape, index, first, static_cast<int>(left < kPanelTokens ? left : kPanelTokens));
    }

    void fill(int64_t index) const {
        const Panel to = panel(index);
        clear_factors(to, shape);
        for (int t = 0; t < to.tokens; ++t) {
            const int64_t token = index * kPanelTokens + t;
            if (shape.is_float) {
                place_float(to, shape, t, call.x, static_cast<int>(call.dtype), token * call.columns);
                continue;
            }
            const int64_t width = call.dtype == KIMI_BFLOAT16 ? 2 : 4;
            int8_t* values = tokens.values + token * shape.padded();
            float* scales = tokens.scales + token * shape.groups();
            float* corrections = tokens.corrections + token * shape.groups();
            path.quantize(static_cast<const char*>(call.x) + token * call.columns * width, static_cast<int>(call.dtype),
                          call.columns, call.group, call.format == KIMI_INT4, values, scales, corrections);
            place_quantized(to, shape, t, values, scales, corrections);
        }
    }

    void compute(int64_t block) const {
        const int64_t first = block * kBlockRows;
        const int64_t count = call.rows - first < kBlockRows ? call.rows - first : kBlockRows;
        const Rows part = rows.from(first, count);
        alignas(64) float y[kBlockRows * kPanelTokens];
        for (int64_t index = 0; index < panels; ++index) {
            const Panel from = panel(index);
            path.multiply(part, from, y);
            for (int t = 0; t < from.tokens; ++t) store(y + t, (index * kPanelTokens + t) * call.rows + first, count);
        }
    }

    void store(const float* y, int64_t offset, int64_t count) const {
        if (call.dtype == KIMI_BFLOAT16) {
            auto* to = static_cast<uint16_t*>(call.y) + offset;
            for (int64_t r = 0; r < count; ++r) to[r] = to_bf16(y[r * kPanelTokens]);
        } else {
            auto* to = static_cast<float*>(call.y) + offset;
            for (int64_t r = 0; r < count; ++r) to[r] = y[r * kPanelTokens];
        }
    }
};

thread_local Workspace workspace;

}  // namespace
}  // namespace kimi

extern "C" int kimi_linear(const kimi_linear_call* call) {
    using namespace kimi;
    Linear work(*call);
    const kimi_status status = check_shape(work.shape, call->rows);
    if (status != KIMI_OK || call->tokens == 0) return status;
    if (call->tokens < 0) return KIMI_BAD_SIZE;
    if (!workspace.reserve(work.lay_out(nullptr))) return KIMI_NO_MEMORY;
    work.lay_out(workspace.memory());
    const int64_t blocks = (call->rows + kBlockRows - 1) / kBlockRows;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t index = 0; index < work.panels; ++index) work.fill(index);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t block = 0; block < blocks; ++block) work.compute(block);
    }
    return KIMI_OK;
}
