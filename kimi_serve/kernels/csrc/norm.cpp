// Norms of many tokens. Knows the call; norm.h knows the arithmetic.
#include "norm.h"

namespace kimi {
namespace {

template <typename T>
void normalize_all(const kimi_norm_call& call) {
    const auto* x = static_cast<const T*>(call.x);
    const auto* residual = static_cast<const T*>(call.residual);
    auto* y = static_cast<T*>(call.y);
    auto* sum = static_cast<T*>(call.sum);
#pragma omp parallel for schedule(static) if (call.tokens > kFewTokens)
    for (int64_t token = 0; token < call.tokens; ++token) {
        const int64_t first = token * call.columns;
        normalize(x + first, residual ? residual + first : nullptr, static_cast<const T*>(call.weight), call.columns,
                  static_cast<float>(call.eps), y + first, residual ? sum + first : nullptr);
    }
}

}  // namespace
}  // namespace kimi

extern "C" int kimi_norm(const kimi_norm_call* call) {
    if (call->tokens < 0 || call->columns < 1) return KIMI_BAD_SIZE;
    if (call->dtype == KIMI_BFLOAT16)
        kimi::normalize_all<uint16_t>(*call);
    else
        kimi::normalize_all<float>(*call);
    return KIMI_OK;
}
