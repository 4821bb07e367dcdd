// How fast this machine reads memory now. Knows a clock; the benchmarks compare with it.
#include <chrono>

#include "kimi_kernels.h"

extern "C" double kimi_read_seconds(const void* data, int64_t bytes) {
    const auto* words = static_cast<const uint64_t*>(data);
    const int64_t count = bytes / 8;
    uint64_t sum = 0;
    const auto begun = std::chrono::steady_clock::now();
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += words[i];
    const auto ended = std::chrono::steady_clock::now();
    static volatile uint64_t kept;
    kept = sum;
    (void)kept;
    return std::chrono::duration<double>(ended - begun).count();
}
