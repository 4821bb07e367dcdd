// A layer's feed-forward in one call: the router, the shared experts and the routed ones. Knows their order only.
#include "work.h"

namespace kimi {
namespace {

thread_local Workspace workspace;

struct Choices {
    float* logits;   // (tokens, experts)
    float* weights;  // (tokens, top_k)
    int32_t* ids;    // (tokens, top_k)

    int64_t lay_out(char* base, const kimi_experts_call& call) {
        Layout layout(base);
        logits = layout.take<float>(call.tokens * call.experts);
        weights = layout.take<float>(call.tokens * call.top_k);
        ids = layout.take<int32_t>(call.tokens * call.top_k);
        return layout.used();
    }
};

int choose(const kimi_sparse_call& call, const Choices& to) {
    const kimi_experts_call& routed = call.routed;
    const kimi_matrix router = {routed.experts, routed.hidden, KIMI_F32, 0, KIMI_FLOAT32, 1, call.router, nullptr};
    const kimi_linear_call score = {routed.tokens, 1, routed.hidden, routed.dtype, KIMI_FLOAT32, router, routed.x,
                                    to.logits};
    if (const int status = kimi_linear(&score)) return status;
    const kimi_route_call route = {routed.tokens, routed.experts, routed.top_k, call.renormalize,
                                   to.logits,     call.bias,      to.weights,   to.ids};
    return kimi_route(&route);
}

}  // namespace
}  // namespace kimi

extern "C" int kimi_sparse(const kimi_sparse_call* call) {
    using namespace kimi;
    if (call->routed.tokens < 0 || call->routed.top_k < 1 || call->routed.experts < 1) return KIMI_BAD_SIZE;
    Choices choices{};
    if (!workspace.reserve(choices.lay_out(nullptr, call->routed))) return KIMI_NO_MEMORY;
    choices.lay_out(workspace.memory(), call->routed);
    if (const int status = choose(*call, choices)) return status;
    if (const int status = kimi_experts(&call->shared)) return status;
    kimi_experts_call routed = call->routed;
    routed.ids = choices.ids;
    routed.id_bytes = 4;
    routed.routing = choices.weights;
    routed.adds = 1;
    return kimi_experts(&routed);
}
