// What attention takes, in one call a layer: three products, a norm, turns, and everything in its place. Knows one
// layer's heads; never a cache.
#include "norm.h"
#include "work.h"

namespace kimi {
namespace {

constexpr int64_t kTokensAtOnce = 512;  // bounds the workspace; the weights stay in the cache from round to round

thread_local Workspace workspace;

template <typename T>
struct Latent {
    const kimi_latent_call& call;
    int64_t start, tokens;  // of the call's tokens, those of this round

    // Workspace
    T* compressed;  // (tokens, latent + rope)
    T* normed;      // (tokens, latent)
    T* expanded;    // (tokens, heads * (nope + value))

    Latent(const kimi_latent_call& c, int64_t first, int64_t count)
        : call(c), start(first), tokens(count), compressed(nullptr), normed(nullptr), expanded(nullptr) {}

    int64_t lay_out(char* base) {
        Layout layout(base);
        compressed = layout.take<T>(tokens * (call.latent + call.rope));
        normed = layout.take<T>(tokens * call.latent);
        expanded = layout.take<T>(tokens * call.heads * (call.nope + call.value));
        return layout.used();
    }

    int64_t width() const { return call.nope + call.rope; }

    T* place(void* out, int64_t token) const {
        return static_cast<T*>(out) + (start + token) * call.heads * width();
    }

    int multiply(const kimi_matrix& matrix, const T* x, T* y) const {
        const kimi_linear_call one = {tokens, 1, matrix.columns, call.dtype, call.dtype, matrix, x, y};
        return kimi_linear(&one);
    }

    int run() const {
        const T* x = static_cast<const T*>(call.x) + start * call.q.columns;
        if (const int status = multiply(call.q, x, place(call.query, 0))) return status;
        if (const int status = multiply(call.kv_a, x, compressed)) return status;
#pragma omp parallel for schedule(static) if (tokens > kFewTokens)
        for (int64_t token = 0; token < tokens; ++token)
            normalize(compressed + token * (call.latent + call.rope), static_cast<const T*>(nullptr),
                      static_cast<const T*>(call.norm), call.latent, static_cast<float>(call.eps),
                      normed + token * call.latent, static_cast<T*>(nullptr));
        if (const int status = multiply(call.kv_b, normed, expanded)) return status;
#pragma omp parallel for schedule(static) if (tokens > kFewTokens)
        for (int64_t token = 0; token < tokens; ++token) arrange(token);
        return KIMI_OK;
    }

    void arrange(int64_t token) const {
        const T* turns = static_cast<const T*>(call.turns) + call.positions[start + token] * call.rope;
        T* shared = compressed + token * (call.latent + call.rope) + call.latent;
        turn(shared, turns);
        for (int64_t head = 0; head < call.heads; ++head) {
            const T* from = expanded + (token * call.heads + head) * (call.nope + call.value);
            T* key = place(call.keys, token) + head * width();
            T* value = place(call.values, token) + head * width();
            turn(place(call.query, token) + head * width() + call.nope, turns);
            copy(key, from, call.nope);
            copy(key + call.nope, shared, call.rope);
            copy(value, from + call.nope, call.value);
            std::memset(value + call.value, 0, static_cast<size_t>(width() - call.value) * sizeof(T));
        }
    }

    void turn(T* pairs, const T* turns) const {
        const int64_t half = call.rope / 2;
        for (int64_t i = 0; i < half; ++i) {
            const float a = value_of(pairs[2 * i]), b = value_of(pairs[2 * i + 1]);
            const float cosine = value_of(turns[i]), sine = value_of(turns[half + i]);
            put(pairs + 2 * i, a * cosine - b * sine);
            put(pairs + 2 * i + 1, b * cosine + a * sine);
        }
    }

    static void copy(T* to, const T* from, int64_t count) {
        std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
    }
};

// The sizes of each matrix are kimi_linear's business; that they fit each other is checked here.
int check(const kimi_latent_call& call) {
    const int64_t width = call.nope + call.rope;
    const bool sized = call.tokens >= 0 && call.heads > 0 && call.nope >= 0 && call.rope >= 0 && call.latent > 0 &&
                       width > 0 && call.rope % 2 == 0 && call.value > 0 && call.value <= width;
    const bool fits = call.q.rows == call.heads * width && call.kv_a.rows == call.latent + call.rope &&
                      call.kv_b.rows == call.heads * (call.nope + call.value) && call.kv_b.columns == call.latent &&
                      call.q.columns == call.kv_a.columns;
    if (!sized || !fits) return KIMI_BAD_SIZE;
    for (int64_t token = 0; token < call.tokens; ++token)
        if (call.positions[token] < 0 || call.positions[token] >= call.limit) return KIMI_BAD_POSITION;
    return KIMI_OK;
}

template <typename T>
int run(const kimi_latent_call& call) {
    for (int64_t first = 0; first < call.tokens; first += kTokensAtOnce) {
        const int64_t left = call.tokens - first;
        Latent<T> work(call, first, left < kTokensAtOnce ? left : kTokensAtOnce);
        if (!workspace.reserve(work.lay_out(nullptr))) return KIMI_NO_MEMORY;
        work.lay_out(workspace.memory());
        if (const int status = work.run()) return status;
    }
    return KIMI_OK;
}

}  // namespace
}  // namespace kimi

extern "C" int kimi_latent(const kimi_latent_call* call) {
    if (const int status = kimi::check(*call)) return status;
    return call->dtype == KIMI_BFLOAT16 ? kimi::run<uint16_t>(*call) : kimi::run<float>(*call);
}
