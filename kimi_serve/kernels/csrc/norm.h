// The norm of one token. Knows one row of numbers; never a tensor or a thread.
#pragma once
#include <cmath>

#include "path.h"

namespace kimi {

constexpr int64_t kFewTokens = 32;  // waking threads takes longer than their norms or turns

// y = s / sqrt(mean(s^2) + eps) * weight with s = x + residual, or x where there is none; in float32, rounded once.
template <typename T>
void normalize(const T* x, const T* residual, const T* weight, int64_t columns, float eps, T* y, T* sum) {
    constexpr int64_t kLanes = 16;  // sums side by side: one chain of additions would be slower than memory
    float squares[kLanes] = {};
    auto at = [&](int64_t i) { return residual ? value_of(x[i]) + value_of(residual[i]) : value_of(x[i]); };
    int64_t done = 0;
    for (; done + kLanes <= columns; done += kLanes)
        for (int64_t i = 0; i < kLanes; ++i) squares[i] += at(done + i) * at(done + i);
    for (; done < columns; ++done) squares[0] += at(done) * at(done);
    float total = 0.0f;
    for (const float square : squares) total += square;
    const float inverse = 1.0f / std::sqrt(total / static_cast<float>(columns) + eps);
    for (int64_t i = 0; i < columns; ++i) {
        const float value = at(i);  // before sum, which may be the residual's own memory
        put(y + i, value * inverse * value_of(weight[i]));
        if (sum) put(sum + i, value);
    }
}

}  // namespace kimi
