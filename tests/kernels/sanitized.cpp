// Drawn calls on every path, for a build with AddressSanitizer and UndefinedBehaviorSanitizer. Knows the C interface.
//
// Every buffer is exactly as long as the interface says, so that one byte read or written past it ends the program.
// Paths must agree to the bit in int8, and else to 2 % of the row's size: rough, since the derived bounds are
// test_numerics.py's business.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../../kimi_serve/kernels/csrc/kimi_kernels.h"

namespace {

std::mt19937 rng(20250114);

int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(rng); }
float normal() { return std::normal_distribution<float>()(rng); }

uint16_t bf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return static_cast<uint16_t>(bits >> 16);
}

// Bytes of a dtype, from normal values; `strange` puts a NaN and an infinity among them.
std::vector<uint8_t> values(int64_t count, int dtype, float size, bool strange) {
    std::vector<uint8_t> bytes(static_cast<size_t>(count * (dtype == KIMI_BFLOAT16 ? 2 : 4)));
    for (int64_t i = 0; i < count; ++i) {
        float value = normal() * size;
        if (strange && draw(0, 200) == 0) value = draw(0, 1) ? NAN : INFINITY;
        const uint16_t half = bf16(value);
        if (dtype == KIMI_BFLOAT16)
            __builtin_memcpy(&bytes[static_cast<size_t>(2 * i)], &half, 2);
        else
            __builtin_memcpy(&bytes[static_cast<size_t>(4 * i)], &value, 4);
    }
    return bytes;
}

struct Form {
    int64_t format, group, scale_dtype, dtype, exact;
};

Form draw_form() {
    const int64_t format = draw(0, 2);
    const int64_t dtype = draw(0, 1);
    return {format, int64_t{32} << draw(0, 2), format == KIMI_INT4 ? draw(0, 1) : 0, dtype,
            format == KIMI_BF16 ? 1 : draw(0, 1)};
}

int64_t columns_of(const Form& form, int64_t most) {
    return form.format == KIMI_INT4 ? form.group * draw(1, most / form.group) : draw(1, most);
}

struct Weights {
    std::vector<uint8_t> data, scales;
};

Weights draw_weights(const Form& form, int64_t rows, int64_t columns) {
    if (form.format == KIMI_BF16) return {values(rows * columns, KIMI_BFLOAT16, 0.1f, false), {}};
    Weights weights;
    weights.data.resize(static_cast<size_t>(form.format == KIMI_INT4 ? rows * columns / 2 : rows * columns));
    for (auto& byte : weights.data) byte = static_cast<uint8_t>(draw(0, 255));
    const int64_t groups = form.format == KIMI_INT4 ? columns / form.group : 1;
    weights.scales = values(rows * groups, static_cast<int>(form.scale_dtype), 0.01f, false);
    return weights;
}

kimi_matrix matrix(const Form& form, int64_t rows, int64_t columns, const Weights& w) {
    return {rows, columns, form.format, form.group, form.scale_dtype, form.exact, w.data.data(), w.scales.data()};
}

kimi_experts_call experts_call(const Form& form, int64_t tokens, int64_t top_k, int64_t count, int64_t hidden,
                               int64_t between, const Weights& gate_up, const Weights& down, const void* x) {
    return {tokens, top_k, count, hidden, between, form.format, form.group, form.scale_dtype, form.dtype, form.exact,
            8, 0, 1.0, x, nullptr, nullptr, gate_up.data.data(), gate_up.scales.data(), down.data.data(),
            down.scales.data(), nullptr};
}

float at(const std::vector<uint8_t>& bytes, int64_t dtype, int64_t index) {
    if (dtype == KIMI_FLOAT32) {
        float value;
        __builtin_memcpy(&value, &bytes[static_cast<size_t>(4 * index)], 4);
        return value;
    }
    uint16_t half;
    __builtin_memcpy(&half, &bytes[static_cast<size_t>(2 * index)], 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

void compare(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, int64_t rows, int64_t columns, int64_t dtype,
             double tolerance) {
    for (int64_t r = 0; r < rows; ++r) {
        double size = 1e-6;
        for (int64_t c = 0; c < columns; ++c) {
            const float value = at(a, dtype, r * columns + c);
            if (std::isfinite(value) && std::fabs(value) > size) size = std::fabs(value);
        }
        for (int64_t c = 0; c < columns; ++c) {
            const float one = at(a, dtype, r * columns + c), other = at(b, dtype, r * columns + c);
            const bool same = std::isfinite(one) ? std::fabs(one - other) <= tolerance * size : !std::isfinite(other);
            if (!same) {
                std::printf("paths disagree: %g and %g of %g\n", one, other, size);
                std::exit(1);
            }
        }
    }
}

template <typename Call>
void on_every_path(Call call, int64_t rows, int64_t columns, const Form& form) {
    const int64_t dtype = form.dtype;
    const double tolerance = form.format == KIMI_INT8 && !form.exact ? 0.0 : 0.02;
    std::vector<uint8_t> first;
    for (int path = 0; path < kimi_path_count(); ++path) {
        if (kimi_choose_path(path) != KIMI_OK) continue;
        std::vector<uint8_t> out(static_cast<size_t>(rows * columns * (dtype == KIMI_BFLOAT16 ? 2 : 4)), 0xee);
        if (const int status = call(out.data())) {
            std::printf("status %d\n", status);
            std::exit(1);
        }
        if (first.empty())
            first = out;
        else
            compare(first, out, rows, columns, dtype, tolerance);
    }
}

void linear() {
    const Form form = draw_form();
    const int64_t columns = columns_of(form, 512), rows = draw(1, 150), tokens = draw(1, 70);
    const int64_t heads = columns % 2 ? 1 : 2, width = columns / heads + draw(0, 9);
    const auto x = values(tokens * heads * width, static_cast<int>(form.dtype), 1.0f, draw(0, 3) == 0);
    const Weights w = draw_weights(form, rows, columns);
    on_every_path(
        [&](void* y) {
            const kimi_linear_call call = {tokens, heads, width, form.dtype, form.dtype, matrix(form, rows, columns, w),
                                           x.data(), y};
            return kimi_linear(&call);
        },
        tokens, rows, form);
}

void experts() {
    const Form form = draw_form();
    const int64_t hidden = columns_of(form, 256), between = columns_of(form, 200);
    const int64_t count = draw(1, 9), top_k = draw(1, 4), tokens = draw(1, 40);
    const auto x = values(tokens * hidden, static_cast<int>(form.dtype), 1.0f, draw(0, 3) == 0);
    const Weights gate_up = draw_weights(form, count * 2 * between, hidden);
    const Weights down = draw_weights(form, count * hidden, between);
    std::vector<int64_t> ids(static_cast<size_t>(tokens * top_k));
    std::vector<float> routing(ids.size());
    for (auto& id : ids) id = draw(-1, count - 1);
    for (auto& weight : routing) weight = std::fabs(normal());
    on_every_path(
        [&](void* out) {
            kimi_experts_call call = experts_call(form, tokens, top_k, count, hidden, between, gate_up, down, x.data());
            call.ids = ids.data();
            call.routing = routing.data();
            call.out = out;
            return kimi_experts(&call);
        },
        tokens, hidden, form);
}

void route() {
    const int64_t tokens = draw(0, 40), experts = draw(1, 80), top_k = draw(1, experts < 8 ? experts : 8);
    std::vector<float> logits(static_cast<size_t>(tokens * experts)), bias(static_cast<size_t>(experts));
    for (auto& value : logits) value = draw(0, 200) == 0 ? NAN : 4 * normal();
    for (auto& value : bias) value = normal();
    std::vector<float> weights(static_cast<size_t>(tokens * top_k));
    std::vector<int32_t> ids(static_cast<size_t>(tokens * top_k), -1);
    const kimi_route_call call = {tokens,        experts,        top_k,          draw(0, 1),
                                  logits.data(), draw(0, 1) ? bias.data() : nullptr, weights.data(), ids.data()};
    if (kimi_route(&call) != KIMI_OK) std::exit(1);
    for (const int32_t id : ids)
        if (id < 0 || id >= experts) std::exit(1);
}

void sparse() {
    const Form form = draw_form();
    const int64_t hidden = columns_of(form, 256), between = columns_of(form, 200), shared = columns_of(form, 300);
    const int64_t count = draw(1, 9), top_k = draw(1, count < 4 ? count : 4), tokens = draw(0, 40);
    const auto x = values(tokens * hidden, static_cast<int>(form.dtype), 1.0f, false);
    const auto router = values(count * hidden, KIMI_FLOAT32, 1.0f, false);
    const Weights gate_up = draw_weights(form, count * 2 * between, hidden);
    const Weights down = draw_weights(form, count * hidden, between);
    const Weights shared_gate_up = draw_weights(form, 2 * shared, hidden), shared_down = draw_weights(form, hidden, shared);
    std::vector<uint8_t> out(static_cast<size_t>(tokens * hidden * (form.dtype == KIMI_BFLOAT16 ? 2 : 4)));
    kimi_sparse_call call = {
        draw(0, 1), reinterpret_cast<const float*>(router.data()), nullptr,
        experts_call(form, tokens, 1, 1, hidden, shared, shared_gate_up, shared_down, x.data()),
        experts_call(form, tokens, top_k, count, hidden, between, gate_up, down, x.data())};
    call.shared.out = call.routed.out = out.data();
    for (int path = 0; path < kimi_path_count(); ++path)  // near-ties differ by path: no comparison
        if (kimi_choose_path(path) == KIMI_OK && kimi_sparse(&call) != KIMI_OK) std::exit(1);
}

void norm() {
    const int64_t tokens = draw(0, 50), columns = draw(1, 100), dtype = draw(0, 1);
    const auto x = values(tokens * columns, static_cast<int>(dtype), 1.0f, true);
    const auto residual = values(tokens * columns, static_cast<int>(dtype), 1.0f, true);
    const auto weight = values(columns, static_cast<int>(dtype), 1.0f, false);
    std::vector<uint8_t> y(x.size()), sum(x.size());
    const bool adds = draw(0, 1);
    const kimi_norm_call call = {tokens, columns, dtype, 1e-5, x.data(), adds ? residual.data() : nullptr,
                                 weight.data(), y.data(), adds ? sum.data() : nullptr};
    if (kimi_norm(&call) != KIMI_OK) std::exit(1);
}

void latent() {
    const Form form = draw_form();
    const int64_t heads = draw(1, 4), nope = draw(1, 20), rope = 2 * draw(0, 8), value = draw(1, nope + rope);
    const int64_t hidden = columns_of(form, 256), size = columns_of(form, 200), tokens = draw(1, 40), limit = draw(1, 9);
    const auto x = values(tokens * hidden, static_cast<int>(form.dtype), 1.0f, draw(0, 3) == 0);
    const auto turns = values(limit * rope, static_cast<int>(form.dtype), 0.5f, false);
    const auto scale = values(size, static_cast<int>(form.dtype), 1.0f, false);
    std::vector<int64_t> positions(static_cast<size_t>(tokens));
    for (auto& position : positions) position = draw(0, limit - 1);
    const int64_t width = nope + rope;
    const Weights q = draw_weights(form, heads * width, hidden), kv_a = draw_weights(form, size + rope, hidden);
    const Weights kv_b = draw_weights(form, heads * (nope + value), size);
    const size_t bytes = static_cast<size_t>(tokens * heads * width * (form.dtype == KIMI_BFLOAT16 ? 2 : 4));
    std::vector<uint8_t> keys(bytes), attended(bytes);
    on_every_path(
        [&](void* query) {
            const kimi_latent_call call = {
                tokens, heads, nope, rope, value, size, form.dtype, limit, 1e-6, x.data(), positions.data(),
                turns.data(), scale.data(), matrix(form, heads * width, hidden, q),
                matrix(form, size + rope, hidden, kv_a), matrix(form, heads * (nope + value), size, kv_b), query,
                keys.data(), attended.data()};
            return kimi_latent(&call);
        },
        tokens, heads * width, form);
}

}  // namespace

int main(int, char** arguments) {
    const int calls = std::atoi(arguments[1]);
    for (int i = 0; i < calls; ++i) {
        linear();
        experts();
        route();
        sparse();
        norm();
        latent();
    }
    int usable = 0;
    for (int path = 0; path < kimi_path_count(); ++path) usable += kimi_path_usable(path);
    std::printf("%d calls of each on %d paths\n", calls, usable);
    return 0;
}
