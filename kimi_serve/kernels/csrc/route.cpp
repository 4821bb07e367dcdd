// Which experts a token goes to, and how much each counts. Knows scores; never a weight of an expert.
//
// score = sigmoid(logit); the largest of score + bias are chosen, the first of equals first; a choice counts its score,
// over the sum of the chosen ones where that is asked for. A logit that is not a number counts as the largest, so what
// it makes of the token shows.
#include <cmath>
#include <cstdint>

#include "kimi_kernels.h"

namespace {

constexpr int64_t kMostExperts = 1024;  // their scores lie on the stack
constexpr int64_t kFewTokens = 32;      // waking threads takes longer

void route(const kimi_route_call& call, int64_t token) {
    float scores[kMostExperts], choice[kMostExperts];
    const float* logits = call.logits + token * call.experts;
    for (int64_t e = 0; e < call.experts; ++e) {
        scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
        choice[e] = call.bias ? scores[e] + call.bias[e] : scores[e];
    }
    bool taken[kMostExperts] = {};
    float* weights = call.weights + token * call.top_k;
    int32_t* ids = call.ids + token * call.top_k;
    float sum = 0.0f;
    for (int64_t k = 0; k < call.top_k; ++k) {
        int64_t best = -1;
        for (int64_t e = 0; e < call.experts; ++e) {
            if (taken[e]) continue;
            const bool larger = best < 0 || choice[e] > choice[best] || (choice[e] != choice[e] && choice[best] == choice[best]);
            best = larger ? e : best;
        }
        taken[best] = true;
        ids[k] = static_cast<int32_t>(best);
        weights[k] = scores[best];
        sum += scores[best];
    }
    if (call.renormalize)
        for (int64_t k = 0; k < call.top_k; ++k) weights[k] /= sum;
}

}  // namespace

extern "C" int kimi_route(const struct kimi_route_call* call) {
    if (call->tokens < 0 || call->top_k < 1 || call->top_k > call->experts || call->experts > kMostExperts)
        return KIMI_BAD_ROUTE;
#pragma omp parallel for schedule(static) if (call->tokens > kFewTokens)
    for (int64_t token = 0; token < call->tokens; ++token) route(*call, token);
    return KIMI_OK;
}
