// Opening rows for wide panels, and their products in plain C++: what paths share or fall back to. Included under the
// target of each, as elementwise.inl is.

namespace {

// Low nibbles of kHalf bytes, then the high ones: a panel's column order.
template <int kHalf>
int32_t open_group(const uint8_t* data, int64_t group, int8_t* to) {
    int32_t sum = 0;
    for (int64_t done = 0; done < group; done += 2 * kHalf, data += kHalf, to += 2 * kHalf)
        for (int i = 0; i < kHalf; ++i) {
            const int low = (data[i] & 15) - 8, high = (data[i] >> 4) - 8;
            to[i] = static_cast<int8_t>(low);
            to[kHalf + i] = static_cast<int8_t>(high);
            sum += low + high;
        }
    return sum;
}

int32_t sum_bytes(const int8_t* values, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += values[i];
    return sum;
}

void open_int4(const kimi::Rows& rows, int64_t row, int8_t* to, int32_t* starts) {
    const uint8_t* data = rows.data + row * rows.row_bytes;
    for (int64_t g = 0; g < rows.groups; ++g, data += rows.group / 2, to += rows.group)
        starts[g] = -128 * (rows.group == 32 ? open_group<16>(data, 32, to) : open_group<32>(data, rows.group, to));
}

kimi::Opened open_rows(const kimi::Rows& rows, int8_t* space, int32_t* starts) {
    const int64_t stride = kimi::wide_columns(rows.columns);
    const bool is_int4 = rows.format == KIMI_INT4;
    const bool in_place = !is_int4 && stride == rows.row_bytes;
    for (int64_t r = 0; r < rows.count; ++r) {
        int8_t* to = space + r * stride;
        const auto* bytes = reinterpret_cast<const int8_t*>(rows.data + r * rows.row_bytes);
        if (is_int4)
            open_int4(rows, r, to, starts + r * rows.groups);
        else
            starts[r] = -128 * sum_bytes(bytes, rows.columns);
        if (in_place) continue;
        if (!is_int4) std::memcpy(to, bytes, static_cast<size_t>(rows.columns));
        std::memset(to + rows.columns, 0, static_cast<size_t>(stride - rows.columns));
    }
    return {in_place ? reinterpret_cast<const int8_t*>(rows.data) : space, stride, starts};
}

// Columns a scale, as a panel has them.
inline int64_t wide_group(const kimi::Rows& rows) {
    return rows.format == KIMI_INT4 ? rows.group : kimi::wide_columns(rows.columns);
}

// One group's sums of a row, starts included, into y.
inline void add_scaled(const int32_t* sums, float weight_scale, const float* scales, int lanes, bool is_first, float* y) {
    for (int lane = 0; lane < lanes; ++lane) {
        const float value = static_cast<float>(sums[lane]) * (weight_scale * scales[lane]);
        y[lane] = is_first ? value : y[lane] + value;
    }
}

[[maybe_unused]] void multiply_plain(const kimi::Rows& rows, const kimi::Opened& opened, const kimi::Panel& panel,
                                     float* y) {
    const int64_t group = wide_group(rows);
    for (int64_t r = 0; r < rows.count; ++r, y += kimi::kWideTokens) {
        const int8_t* weights = opened.values + r * opened.stride;
        const auto* activations = reinterpret_cast<const uint8_t*>(panel.quantized);
        for (int64_t g = 0; g < rows.groups; ++g, weights += group) {
            int32_t sums[kimi::kWideTokens];
            for (int lane = 0; lane < panel.tokens; ++lane) sums[lane] = opened.starts[r * rows.groups + g];
            for (int64_t k = 0; k < group; k += 4, activations += 4 * panel.lanes)
                for (int lane = 0; lane < panel.tokens; ++lane)
                    for (int i = 0; i < 4; ++i) sums[lane] += activations[4 * lane + i] * weights[k + i];
            add_scaled(sums, kimi::scale_at(rows.scales, rows.scale_dtype, r * rows.groups + g),
                       panel.scales + g * panel.lanes, panel.tokens, g == 0, y);
        }
    }
}

}  // namespace
