// Which path runs here, and what a call must satisfy. Knows this CPU.
#include <atomic>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "path.h"
#include "work.h"

namespace kimi {
namespace {

constexpr int64_t kLongestRow = 65536;  // 127 * 128 * 65536 < 2^31: a row's sum fits 32 bits

const Path* const kPaths[] = {
    &kPortable,
#if defined(__x86_64__)
    &kAvx2,
    &kVnni,
    &kAmx,
#endif
};
constexpr int kPathCount = static_cast<int>(sizeof(kPaths) / sizeof(kPaths[0]));

int best_path() {
    int best = 0;
    for (int i = 0; i < kPathCount; ++i)
        if (kPaths[i]->usable()) best = i;
    return best;
}

std::atomic<int>& choice() {
    static std::atomic<int> chosen{best_path()};
    return chosen;
}

}  // namespace

const Path& chosen_path() { return *kPaths[choice().load(std::memory_order_relaxed)]; }

kimi_status check_shape(const Shape& shape, int64_t rows) {
    if (shape.columns < 1 || shape.columns > kLongestRow || rows < 1) return KIMI_BAD_SIZE;
    if (shape.format == KIMI_INT4) {
        const bool known = shape.group == 32 || shape.group == 64 || shape.group == 128;
        return known && shape.columns % shape.group == 0 ? KIMI_OK : KIMI_BAD_GROUP;
    }
    if (shape.format == KIMI_INT8) return KIMI_OK;
    const bool is_plain = shape.format == KIMI_BF16 || shape.format == KIMI_F32;
    return is_plain && shape.is_float ? KIMI_OK : KIMI_BAD_FORMAT;
}

Rows make_rows(const Shape& shape, int scale_dtype, const void* data, const void* scales, int64_t count) {
    const int64_t row_bytes = shape.format == KIMI_INT4   ? shape.columns / 2
                              : shape.format == KIMI_INT8 ? shape.columns
                              : shape.format == KIMI_BF16 ? 2 * shape.columns
                                                          : 4 * shape.columns;
    const int64_t group = shape.format == KIMI_INT4 ? shape.group : shape.columns;
    return {shape.format, scale_dtype, group, shape.columns, count, static_cast<const uint8_t*>(data), scales,
            row_bytes,    shape.groups()};
}

}  // namespace kimi

using kimi::kPathCount;
using kimi::kPaths;

extern "C" {

int kimi_abi(void) { return KIMI_ABI; }
int kimi_path_count(void) { return kPathCount; }
const char* kimi_path_name(int path) { return path >= 0 && path < kPathCount ? kPaths[path]->name : ""; }
int kimi_path_usable(int path) { return path >= 0 && path < kPathCount && kPaths[path]->usable(); }
int kimi_path_chosen(void) { return kimi::choice().load(); }

int kimi_choose_path(int path) {
    if (!kimi_path_usable(path)) return KIMI_NO_PATH;
    kimi::choice().store(path);
    return KIMI_OK;
}

int kimi_gate(float* gate, const float* up, int64_t count) {
    kimi::chosen_path().gate(gate, up, count);
    return KIMI_OK;
}

int kimi_threads(void) {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

}  // extern "C"
