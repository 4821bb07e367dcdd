// What the library offers, in plain C. Knows shapes and pointers; never a tensor, a model or Python.
//
// Every field of a call is 64 bits wide, so that a caller can fill one without knowing C's alignment.
// Matrices are row-major, one row an output, as checkpoints of compressed-tensors hold them; nothing is repacked:
//   int4  8 values an int32 along the row, value i in bits 4i..4i+3, stored + 8; one scale a group of the row
//   int8  two's complement; one float32 scale a row
//   bf16, float32  no scales
#pragma once
#include <stdint.h>

#define KIMI_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum { KIMI_ABI = 3 };
enum kimi_format { KIMI_INT4 = 0, KIMI_INT8 = 1, KIMI_BF16 = 2, KIMI_F32 = 3 };
enum kimi_dtype { KIMI_FLOAT32 = 0, KIMI_BFLOAT16 = 1 };
enum kimi_status {
    KIMI_OK = 0,
    KIMI_BAD_FORMAT = 1,
    KIMI_BAD_GROUP = 2,
    KIMI_BAD_SIZE = 3,
    KIMI_BAD_EXPERT = 4,
    KIMI_NO_MEMORY = 5,
    KIMI_NO_PATH = 6,
    KIMI_BAD_ROUTE = 7,
    KIMI_BAD_POSITION = 8,
};

struct kimi_matrix {
    int64_t rows, columns;
    int64_t format, group, scale_dtype;
    int64_t exact;       // 1: activations stay float32; 0: int8, a scale a token (int8) or a token and group (int4)
    const void* weights; // (rows, columns)
    const void* scales;  // (rows, columns / group) of scale_dtype, or (rows,) float32, or null
};

// y = x W^T. A token's x is `heads` runs of head_width values, of which the first columns / heads count.
struct kimi_linear_call {
    int64_t tokens, heads, head_width;
    int64_t dtype, y_dtype;
    struct kimi_matrix matrix;
    const void* x; // (tokens, heads * head_width) of dtype
    void* y;       // (tokens, rows) of y_dtype
};

// out[t] = scale * sum over k of routing[t][k] * down(silu(gate x[t]) * up x[t]) with the matrices of expert ids[t][k],
// plus what out[t] holds where `adds` is 1.
struct kimi_experts_call {
    int64_t tokens, top_k, experts, hidden, intermediate;
    int64_t format, group, scale_dtype, dtype, exact; // as above
    int64_t id_bytes;                                 // 4 or 8
    int64_t adds;
    double scale;
    const void* x;        // (tokens, hidden)
    const void* ids;      // (tokens, top_k); a negative id is an expert of another rank; null: all go to expert 0
    const float* routing; // (tokens, top_k); null: every choice counts once
    const void* gate_up;                              // (experts, 2 * intermediate, hidden): gate rows, then up rows
    const void* gate_up_scales;
    const void* down; // (experts, hidden, intermediate)
    const void* down_scales;
    void* out; // (tokens, hidden) of dtype
};

// weights[t][k], ids[t][k]: the top_k largest of sigmoid(logits[t]) + bias, each with its sigmoid.
struct kimi_route_call {
    int64_t tokens, experts, top_k;
    int64_t renormalize;  // 1: weights of a token sum to one
    const float* logits;  // (tokens, experts)
    const float* bias;    // (experts,) or null
    float* weights;       // (tokens, top_k)
    int32_t* ids;         // (tokens, top_k)
};

// A layer's shared experts, which all tokens go to, plus its routed ones, chosen by logits = router x in float32.
struct kimi_sparse_call {
    int64_t renormalize;
    const float* router;             // (experts, hidden)
    const float* bias;               // (experts,) or null
    struct kimi_experts_call shared; // one expert, no ids
    struct kimi_experts_call routed; // its ids and routing are not read
};

// y = norm(x + residual) * weight, with norm(s) = s / sqrt(mean(s^2) + eps); sum = x + residual.
struct kimi_norm_call {
    int64_t tokens, columns, dtype;
    double eps;
    const void* x;        // (tokens, columns), as are residual, y and sum
    const void* residual; // or null, and then no sum
    const void* weight;   // (columns,)
    void* y;
    void* sum;
};

// What attention over whole keys and values takes, from one layer's hidden states: per head a query and a key of
// nope + rope values, whose last ones are turned by the token's position in adjacent pairs, and `value` values filled
// up with zeros to that width. Keys and values come from kv_b norm(kv_a x), the keys' turned part is one for all heads.
struct kimi_latent_call {
    int64_t tokens, heads, nope, rope, value, latent;
    int64_t dtype, limit;     // positions are below limit
    double eps;
    const void* x;            // (tokens, hidden)
    const int64_t* positions; // (tokens,)
    const void* turns;        // (limit, rope): rope / 2 cosines, then as many sines
    const void* norm;         // (latent,)
    struct kimi_matrix q;     // (heads * (nope + rope), hidden)
    struct kimi_matrix kv_a;  // (latent + rope, hidden)
    struct kimi_matrix kv_b;  // (heads * (nope + value), latent)
    void* query;              // (tokens, heads * (nope + rope)), as are keys and values
    void* keys;
    void* values;
};

KIMI_API int kimi_abi(void);
KIMI_API int kimi_linear(const struct kimi_linear_call* call);
KIMI_API int kimi_experts(const struct kimi_experts_call* call);
KIMI_API int kimi_route(const struct kimi_route_call* call);
KIMI_API int kimi_sparse(const struct kimi_sparse_call* call);
KIMI_API int kimi_norm(const struct kimi_norm_call* call);
KIMI_API int kimi_latent(const struct kimi_latent_call* call);
// gate[i] = silu(gate[i]) * up[i]
KIMI_API int kimi_gate(float* gate, const float* up, int64_t count);

// Paths, slowest first. The last usable one is chosen when the library is loaded.
KIMI_API int kimi_path_count(void);
KIMI_API const char* kimi_path_name(int path);
KIMI_API int kimi_path_usable(int path);
KIMI_API int kimi_path_chosen(void);
KIMI_API int kimi_choose_path(int path); // for tests and benchmarks; not while another thread computes

// Seconds that all threads together take to read `bytes` once: the ceiling of a bandwidth-bound kernel.
KIMI_API double kimi_read_seconds(const void* data, int64_t bytes);
KIMI_API int kimi_threads(void);

#ifdef __cplusplus
}
#endif
