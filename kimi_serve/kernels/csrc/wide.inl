// Opening rows for wide panels, and their products in plain C++: what paths share or fall back to. Included under the
// target of each, as elementwise.inl is.

namespace {

// Low nibbles of kHalf bytes, then the high ones: a panel's column order. Stored + 8 they stay.
template <int kHalf>
void open_nibbles(const uint8_t* data, int64_t bytes, uint8_t* to) {
    for (int64_t done = 0; done < bytes; done += kHalf, data += kHalf, to += 2 * kHalf) {
        for (int i = 0; i < kHalf; ++i) to[i] = data[i] & 15;
        for (int i = 0; i < kHalf; ++i) to[kHalf + i] = data[i] >> 4;
    }
}

kimi::Opened open_rows(const kimi::Rows& rows, uint8_t* space) {
    const int64_t stride = kimi::wide_columns(rows.columns);
    const bool is_int4 = rows.format == KIMI_INT4;
    if (!is_int4 && stride == rows.row_bytes) return {rows.data, stride};
    for (int64_t r = 0; r < rows.count; ++r) {
        uint8_t* to = space + r * stride;
        const uint8_t* data = rows.data + r * rows.row_bytes;
        if (!is_int4)
            std::memcpy(to, data, static_cast<size_t>(rows.columns));
        else if (rows.group == 32)
            open_nibbles<16>(data, rows.row_bytes, to);
        else
            open_nibbles<32>(data, rows.row_bytes, to);
        std::memset(to + rows.columns, 0, static_cast<size_t>(stride - rows.columns));
    }
    return {space, stride};
}

// Columns a scale, as a panel has them.
inline int64_t wide_group(const kimi::Rows& rows) {
    return rows.format == KIMI_INT4 ? rows.group : kimi::wide_columns(rows.columns);
}

// One group's sums of a row into y; int4 takes off what its weights are stored too large by.
inline void add_scaled(const int32_t* sums, float weight_scale, const float* scales, const float* corrections, int lanes,
                       bool is_first, float* y) {
    for (int lane = 0; lane < lanes; ++lane) {
        const auto sum = static_cast<float>(sums[lane]);
        const float value = corrections ? (sum * scales[lane] + corrections[lane]) * weight_scale
                                        : sum * (weight_scale * scales[lane]);
        y[lane] = is_first ? value : y[lane] + value;
    }
}

[[maybe_unused]] void multiply_plain(const kimi::Rows& rows, const kimi::Opened& opened, const kimi::Panel& panel,
                                     float* y) {
    const int64_t group = wide_group(rows);
    const bool is_int4 = rows.format == KIMI_INT4;
    for (int64_t r = 0; r < rows.count; ++r, y += kimi::kWideTokens) {
        const uint8_t* weights = opened.values + r * opened.stride;
        const int8_t* activations = panel.quantized;
        for (int64_t g = 0; g < rows.groups; ++g, weights += group) {
            int32_t sums[kimi::kWideTokens] = {};
            for (int64_t k = 0; k < group; k += 4, activations += 4 * panel.lanes)
                for (int lane = 0; lane < panel.tokens; ++lane)
                    for (int i = 0; i < 4; ++i) {
                        const int weight = is_int4 ? weights[k + i] : static_cast<int8_t>(weights[k + i]);
                        sums[lane] += activations[4 * lane + i] * weight;
                    }
            add_scaled(sums, kimi::scale_at(rows.scales, rows.scale_dtype, r * rows.groups + g),
                       panel.scales + g * panel.lanes, is_int4 ? panel.corrections + g * panel.lanes : nullptr,
                       panel.tokens, g == 0, y);
        }
    }
}

}  // namespace
