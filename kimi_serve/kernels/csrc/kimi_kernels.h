// What the library offers, in plain C. Knows shapes and pointers; never a tensor, a model or Python.
//
// Every field of a call is 64 bits wide, so that a caller can fill one without knowing C's alignment.
// Matrices are row-major, one row an output, as checkpoints of compressed-tensors hold them; nothing is repacked:
//   int4  8 values an int32 along the row, value i in bits 4i..4i+3, stored + 8; one scale a group of the row
//   int8  two's complement; one float32 scale a row
//   bf16  no scales
#pragma once
#include <stdint.h>

#define KIMI_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum { KIMI_ABI = 2 };
enum kimi_format { KIMI_INT4 = 0, KIMI_INT8 = 1, KIMI_BF16 = 2 };
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
};

struct kimi_linear_call {
    int64_t tokens, columns, rows;
    int64_t format, group, scale_dtype, dtype;
    int64_t exact;       // 1: activations stay float32; 0: int8, a scale a token (int8) or a token and group (int4)
    const void* x;       // (tokens, columns) of dtype
    const void* weights; // (rows, columns)
    const void* scales;  // (rows, columns / group) of scale_dtype, or (rows,) float32, or null
    void* y;             // (tokens, rows) of dtype
};

// out[t] = sum over k of routing[t][k] * down(silu(gate x[t]) * up x[t]) with the matrices of expert ids[t][k].
struct kimi_experts_call {
    int64_t tokens, top_k, experts, hidden, intermediate;
    int64_t format, group, scale_dtype, dtype, exact; // as above
    int64_t id_bytes;                                 // 4 or 8
    const void* x;                                    // (tokens, hidden)
    const void* ids;                                  // (tokens, top_k); a negative id is an expert of another rank
    const float* routing;                             // (tokens, top_k)
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

KIMI_API int kimi_abi(void);
KIMI_API int kimi_linear(const struct kimi_linear_call* call);
KIMI_API int kimi_experts(const struct kimi_experts_call* call);
KIMI_API int kimi_route(const struct kimi_route_call* call);
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
