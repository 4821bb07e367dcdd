// A layer's routed experts in one call. Knows which token goes where; never how a path multiplies.
//
// Pairs (token, choice) are sorted by expert and cut into panels of eight, so each used expert's weights are streamed
// once, whether one token asks for it or hundreds. Four steps, a barrier between each: tokens to panels; gate and up and
// SiLU, a task for each expert and block of rows; the products to panels; down, a task for each block of output
// columns, which alone writes them: the sum over experts has one order whatever the threads do.
#include "work.h"

namespace kimi {
namespace {

constexpr int64_t kBlockRows = 64;
constexpr int64_t kOutputBlock = 128;
constexpr int64_t kTokensAtOnce = 2048;  // bounds the workspace: the products of a choice are hidden float32 values

struct Pair {
    int32_t token;
    float weight;
};

struct Span {  // one used expert
    int32_t expert;
    const Slice *begin, *end;  // of pairs

    bool has_wide() const { return begin->lanes > 0; }  // wide panels come first
};

struct Experts {
    const kimi_experts_call& call;
    const Path& path;
    int64_t start, tokens;  // of the call's tokens, those of this round
    Shape in, between;
    Rows gate_up, down;

    // Workspace
    int32_t* ends;  // (experts)
    Pair* pairs;
    Span* spans;
    Slice* slices;
    Quantized quantized;        // x by token
    Quantized products;         // silu(gate) * up by pair
    Panels x, h;
    float* hidden;              // (pairs, intermediate)
    float* sums;                // (tokens, hidden)
    Room gate_room, up_room, down_room;
    int64_t span_count = 0, panel_count = 0;

    Experts(const kimi_experts_call& c, int64_t first, int64_t count)
        : call(c),
          path(chosen_path()),
          start(first),
          tokens(count),
          in{c.hidden, c.group, static_cast<int>(c.format), c.exact != 0},
          between{c.intermediate, c.group, static_cast<int>(c.format), c.exact != 0},
          gate_up(make_rows(in, static_cast<int>(c.scale_dtype), c.gate_up, c.gate_up_scales,
                            c.experts * 2 * c.intermediate)),
          down(make_rows(between, static_cast<int>(c.scale_dtype), c.down, c.down_scales, c.experts * c.hidden)) {}

    int64_t lay_out(char* base) {
        Layout layout(base);
        const int64_t most = tokens * call.top_k;
        const int64_t used = call.experts < most ? call.experts : most;
        ends = layout.take<int32_t>(call.experts);
        pairs = layout.take<Pair>(most);
        spans = layout.take<Span>(used);
        slices = layout.take<Slice>(Cutter::most_slices(most, used));
        quantized.lay_out(layout, in, tokens);
        products.lay_out(layout, between, most);
        x.lay_out(layout, in, most, used);
        h.lay_out(layout, between, most, used);
        hidden = layout.take<float>(most * call.intermediate);
        sums = layout.take<float>(tokens * call.hidden);
        gate_room.lay_out(layout, in, path, kBlockRows);
        up_room.lay_out(layout, in, path, kBlockRows);
        down_room.lay_out(layout, between, path, kOutputBlock);
        return layout.used();
    }

    int64_t expert_at(int64_t index) const {
        if (!call.ids) return 0;
        return call.id_bytes == 8 ? static_cast<const int64_t*>(call.ids)[index]
                                  : static_cast<const int32_t*>(call.ids)[index];
    }

    // Sorts pairs by expert, keeping the order of tokens, and cuts each expert's into panels.
    bool group() {
        std::memset(ends, 0, static_cast<size_t>(call.experts) * 4);
        const int64_t first = start * call.top_k, last = (start + tokens) * call.top_k;
        for (int64_t i = first; i < last; ++i) {
            const int64_t expert = expert_at(i);
            if (expert >= call.experts) return false;
            if (expert >= 0) ++ends[expert];
        }
        int32_t position = 0;
        Cutter cutter(path, in);  // `between` has as many columns a group, so the same panels
        Slice* end = slices;
        for (int64_t e = 0; e < call.experts; ++e) {
            const int32_t count = ends[e];
            ends[e] = position;
            if (count) {
                Slice* const begin = end;
                end = cutter.cut(position, count, begin);
                spans[span_count++] = {static_cast<int32_t>(e), begin, end};
            }
            position += count;
        }
        panel_count = end - slices;
        for (int64_t i = first; i < last; ++i) {
            const int64_t expert = expert_at(i);
            if (expert >= 0)
                pairs[ends[expert]++] = {static_cast<int32_t>(i / call.top_k - start), call.routing ? call.routing[i] : 1.0f};
        }
        return true;
    }

    void quantize_token(int64_t token) const {
        const int64_t width = call.dtype == KIMI_BFLOAT16 ? 2 : 4;
        path.quantize(static_cast<const char*>(call.x) + (start + token) * call.hidden * width,
                      static_cast<int>(call.dtype), call.hidden, call.group, call.format == KIMI_INT4,
                      quantized.values + token * in.padded(), quantized.scales + token * in.groups(),
                      quantized.corrections + token * in.groups());
    }

    void fill_x(int64_t index) const {
        const Panel to = x.at(in, slices[index]);
        clear_factors(to, in);
        for (int t = 0; t < to.tokens; ++t) {
            const int64_t token = pairs[slices[index].first + t].token;
            if (in.is_float)
                place_float(to, in, t, call.x, static_cast<int>(call.dtype), (start + token) * call.hidden);
            else
                place_quantized(to, in, t, quantized.values + token * in.padded(),
                                quantized.scales + token * in.groups(), quantized.corrections + token * in.groups());
        }
    }

    void fill_h(int64_t index) const {
        const Panel to = h.at(between, slices[index]);
        clear_factors(to, between);
        for (int t = 0; t < to.tokens; ++t) {
            const int64_t pair = slices[index].first + t;
            if (between.is_float) {
                place_float(to, between, t, hidden, KIMI_FLOAT32, pair * call.intermediate);
                continue;
            }
            int8_t* values = products.values + pair * between.padded();
            float* scales = products.scales + pair * between.groups();
            float* corrections = products.corrections + pair * between.groups();
            path.quantize(hidden + pair * call.intermediate, KIMI_FLOAT32, call.intermediate, call.group,
                          call.format == KIMI_INT4, values, scales, corrections);
            place_quantized(to, between, t, values, scales, corrections);
        }
    }

    int64_t blocks() const { return (call.intermediate + kBlockRows - 1) / kBlockRows; }

    // Rows first .. of gate and of up, for all tokens of one expert.
    void gate(const Span& span, int64_t block) const {
        const int64_t first = block * kBlockRows;
        const int64_t count = call.intermediate - first < kBlockRows ? call.intermediate - first : kBlockRows;
        const int64_t base = span.expert * 2 * call.intermediate + first;
        const Block gates_of(path, gate_up.from(base, count), in, span.has_wide(), gate_room);
        const Block ups_of(path, gate_up.from(base + call.intermediate, count), in, span.has_wide(), up_room);
        alignas(64) float gates[kBlockRows * kWideTokens], ups[kBlockRows * kWideTokens];
        const auto bytes = static_cast<size_t>(count * (span.has_wide() ? kWideTokens : kPanelTokens)) * 4;
        std::memset(gates, 0, bytes);  // the gate also reads what no token writes
        std::memset(ups, 0, bytes);
        for (const Slice* slice = span.begin; slice < span.end; ++slice) {
            const Panel from = x.at(in, *slice);
            const int64_t pitch = Block::pitch(from);
            gates_of.multiply(from, gates);
            ups_of.multiply(from, ups);
            path.gate(gates, ups, count * pitch);
            for (int t = 0; t < from.tokens; ++t) {
                float* to = hidden + (slice->first + t) * call.intermediate + first;
                for (int64_t r = 0; r < count; ++r) to[r] = gates[r * pitch + t];
            }
        }
    }

    // Output columns first .. of all tokens.
    void finish(int64_t block) const {
        const int64_t first = block * kOutputBlock;
        const int64_t count = call.hidden - first < kOutputBlock ? call.hidden - first : kOutputBlock;
        for (int64_t token = 0; token < tokens; ++token)
            std::memset(sums + token * call.hidden + first, 0, static_cast<size_t>(count) * 4);
        alignas(64) float y[kOutputBlock * kWideTokens];
        for (int64_t s = 0; s < span_count; ++s) {
            const Span& span = spans[s];
            const Block block(path, down.from(span.expert * call.hidden + first, count), between, span.has_wide(), down_room);
            for (const Slice* slice = span.begin; slice < span.end; ++slice) {
                const Panel from = h.at(between, *slice);
                block.multiply(from, y);
                add(*slice, y, Block::pitch(from), first, count);
            }
        }
        for (int64_t token = 0; token < tokens; ++token) store(token, first, count);
    }

    void add(const Slice& slice, const float* y, int64_t pitch, int64_t first, int64_t count) const {
        for (int t = 0; t < slice.tokens; ++t) {
            const Pair pair = pairs[slice.first + t];
            float* to = sums + pair.token * call.hidden + first;
            for (int64_t r = 0; r < count; ++r) to[r] += pair.weight * y[r * pitch + t];
        }
    }

    void store(int64_t token, int64_t first, int64_t count) const {
        const float* from = sums + token * call.hidden + first;
        const int64_t offset = (start + token) * call.hidden + first;
        const auto scale = static_cast<float>(call.scale);
        if (call.dtype == KIMI_BFLOAT16) {
            auto* to = static_cast<uint16_t*>(call.out) + offset;
            for (int64_t i = 0; i < count; ++i) to[i] = to_bf16(scale * from[i] + (call.adds ? from_bf16(to[i]) : 0.0f));
        } else {
            auto* to = static_cast<float*>(call.out) + offset;
            for (int64_t i = 0; i < count; ++i) to[i] = scale * from[i] + (call.adds ? to[i] : 0.0f);
        }
    }

    void run() const {
        const int64_t tasks = span_count * blocks();
        const int64_t outputs = (call.hidden + kOutputBlock - 1) / kOutputBlock;
#pragma omp parallel
        {
            if (!in.is_float) {
#pragma omp for schedule(static)
                for (int64_t token = 0; token < tokens; ++token) quantize_token(token);
            }
#pragma omp for schedule(static)
            for (int64_t index = 0; index < panel_count; ++index) fill_x(index);
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < tasks; ++task) gate(spans[task / blocks()], task % blocks());
#pragma omp for schedule(static)
            for (int64_t index = 0; index < panel_count; ++index) fill_h(index);
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t block = 0; block < outputs; ++block) finish(block);
        }
    }
};

thread_local Workspace workspace;

kimi_status check(const kimi_experts_call& call) {
    if (call.tokens < 0 || call.top_k < 1 || call.experts < 1) return KIMI_BAD_SIZE;
    if (call.tokens * call.top_k > INT32_MAX) return KIMI_BAD_SIZE;
    const Experts work(call, 0, 0);
    const kimi_status status = check_shape(work.in, call.intermediate);
    return status != KIMI_OK ? status : check_shape(work.between, call.hidden);
}

}  // namespace
}  // namespace kimi

extern "C" int kimi_experts(const kimi_experts_call* call) {
    using namespace kimi;
    const kimi_status status = check(*call);
    if (status != KIMI_OK) return status;
    for (int64_t first = 0; first < call->tokens; first += kTokensAtOnce) {
        const int64_t left = call->tokens - first;
        Experts work(*call, first, left < kTokensAtOnce ? left : kTokensAtOnce);
        if (!workspace.reserve(work.lay_out(nullptr))) return KIMI_NO_MEMORY;
        work.lay_out(workspace.memory());
        if (!work.group()) return KIMI_BAD_EXPERT;
        work.run();
    }
    return KIMI_OK;
}
