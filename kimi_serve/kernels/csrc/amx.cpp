// Wide panels in AMX tiles: sixteen rows times sixteen tokens times 64 columns an instruction. All else is vnni.cpp's.
//
// Weights are the first factor, as rows lie in memory; a wide panel is the second, as the instruction wants it.
// Built with KIMI_EMULATE_AMX, tiles are arrays and the four instructions plain loops: so the tests reach everything in
// this file but the instructions themselves. Where a CPU has them, a small product is checked before the path is used.
#include "path.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,amx-tile,amx-int8")
#endif

#include "wide.inl"

namespace kimi {
namespace {

constexpr int kTileRows = 16;
constexpr int kSums = 0, kWeights = 4, kActivations = 6;  // tiles: 2 x 2 of sums, 2 of weights, 2 of activations

struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

Configuration configuration(int rows, int columns) {
    Configuration made{};
    made.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        made.rows[tile] = static_cast<uint8_t>(tile < kActivations ? rows : columns / 4);
        made.row_bytes[tile] = static_cast<uint16_t>(tile >= kWeights && tile < kActivations ? columns : 4 * kLanes);
    }
    return made;
}

#if defined(KIMI_EMULATE_AMX)
struct Tile {
    uint8_t bytes[kTileRows][64];
};
thread_local Configuration configured;
thread_local Tile tiles[8];

void configure(const Configuration& wanted) { configured = wanted; }
void release() { configured = {}; }

template <int kTile>
void load(const void* from, int64_t stride) {
    for (int row = 0; row < configured.rows[kTile]; ++row)
        std::memcpy(tiles[kTile].bytes[row], static_cast<const char*>(from) + row * stride, configured.row_bytes[kTile]);
}

template <int kTile>
void store(void* to, int64_t stride) {
    for (int row = 0; row < configured.rows[kTile]; ++row)
        std::memcpy(static_cast<char*>(to) + row * stride, tiles[kTile].bytes[row], configured.row_bytes[kTile]);
}

template <int kTile>
void clear() {
    tiles[kTile] = {};
}

template <int kTo, int kRow, int kColumn>
void add_products() {
    for (int row = 0; row < configured.rows[kTo]; ++row)
        for (int lane = 0; lane < configured.row_bytes[kTo] / 4; ++lane) {
            int32_t sum;
            std::memcpy(&sum, tiles[kTo].bytes[row] + 4 * lane, 4);
            for (int k = 0; k < configured.row_bytes[kRow]; ++k)
                sum += static_cast<int8_t>(tiles[kRow].bytes[row][k]) *
                       static_cast<int8_t>(tiles[kColumn].bytes[k / 4][4 * lane + k % 4]);
            std::memcpy(tiles[kTo].bytes[row] + 4 * lane, &sum, 4);
        }
}

bool may_use_tiles() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
// In assembly, since the compiler's own macros take no template's number for a tile.
void configure(const Configuration& wanted) { __asm__ volatile("ldtilecfg %0" : : "m"(wanted)); }
void release() { __asm__ volatile("tilerelease"); }

template <int kTile>
inline void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void clear() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// Signed bytes both; int4's, stored + 8, are at most 15.
template <int kTo, int kRow, int kColumn>
inline void add_products() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kTo), "i"(kRow), "i"(kColumn));
}

// The CPU has tiles, the system saves them (XCR0 bits 17 and 18), and gives them to this process on request.
bool may_use_tiles() {
    unsigned a, b, c, d;
    constexpr unsigned kOsxsave = 1u << 27, kTilesAndBytes = 3u << 24, kSaved = 3u << 17;
    if (!kVnni.usable() || !__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsxsave)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTilesAndBytes) != kTilesAndBytes) return false;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & kSaved) != kSaved) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of Linux 5.16
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// kRows x kVectors tiles of sums over one group, stored as (row tiles, vectors, 16, 16).
template <int kRows, int kVectors>
void sum_group(const uint8_t* weights, int64_t stride, const int8_t* activations, int64_t group, int step, int32_t* sums) {
    constexpr int64_t kPitch = 4 * kLanes * kVectors;
    clear<kSums>();
    if constexpr (kVectors == 2) clear<kSums + 1>();
    if constexpr (kRows == 2) clear<kSums + 2>();
    if constexpr (kRows == 2 && kVectors == 2) clear<kSums + 3>();
    for (int64_t k = 0; k < group; k += step) {
        const int8_t* from = activations + k / 4 * kPitch;
        load<kWeights>(weights + k, stride);
        load<kActivations>(from, kPitch);
        add_products<kSums, kWeights, kActivations>();
        if constexpr (kVectors == 2) {
            load<kActivations + 1>(from + 4 * kLanes, kPitch);
            add_products<kSums + 1, kWeights, kActivations + 1>();
        }
        if constexpr (kRows == 2) {
            load<kWeights + 1>(weights + kTileRows * stride + k, stride);
            add_products<kSums + 2, kWeights + 1, kActivations>();
        }
        if constexpr (kRows == 2 && kVectors == 2) add_products<kSums + 3, kWeights + 1, kActivations + 1>();
    }
    constexpr int kTile = kTileRows * kLanes;
    store<kSums>(sums, 4 * kLanes);
    if constexpr (kVectors == 2) store<kSums + 1>(sums + kTile, 4 * kLanes);
    if constexpr (kRows == 2) store<kSums + 2>(sums + kVectors * kTile, 4 * kLanes);
    if constexpr (kRows == 2 && kVectors == 2) store<kSums + 3>(sums + 3 * kTile, 4 * kLanes);
}

// Rows first .. first + count - 1, of which there are 32, 16, or fewer than 16 in one tile.
template <int kRows, int kVectors>
void rows_of_tiles(const Rows& rows, const Opened& opened, const Panel& panel, int64_t first, int64_t count, int step,
                   float* y) {
    const int64_t group = wide_group(rows);
    const bool is_int4 = rows.format == KIMI_INT4;
    alignas(64) int32_t sums[kRows * kVectors * kTileRows * kLanes];
    for (int64_t g = 0; g < rows.groups; ++g) {
        sum_group<kRows, kVectors>(opened.values + first * opened.stride + g * group, opened.stride,
                                   panel.quantized + g * group * panel.lanes, group, step, sums);
        for (int64_t r = 0; r < count; ++r) {
            const float scale = scale_at(rows.scales, rows.scale_dtype, (first + r) * rows.groups + g);
            for (int v = 0; v < kVectors; ++v) {
                const int64_t lanes = g * panel.lanes + v * kLanes;
                add_scaled(sums + ((r / kTileRows * kVectors + v) * kTileRows + r % kTileRows) * kLanes, scale,
                           panel.scales + lanes, is_int4 ? panel.corrections + lanes : nullptr, kLanes, g == 0,
                           y + (first + r) * kWideTokens + v * kLanes);
            }
        }
    }
}

template <int kVectors>
void multiply_vectors(const Rows& rows, const Opened& opened, const Panel& panel, float* y) {
    const int step = static_cast<int>(wide_group(rows) % kWideBlock ? 32 : kWideBlock);
    int64_t r = 0;
    if (rows.count >= kTileRows) configure(configuration(kTileRows, step));
    for (; r + 2 * kTileRows <= rows.count; r += 2 * kTileRows)
        rows_of_tiles<2, kVectors>(rows, opened, panel, r, 2 * kTileRows, step, y);
    for (; r + kTileRows <= rows.count; r += kTileRows)
        rows_of_tiles<1, kVectors>(rows, opened, panel, r, kTileRows, step, y);
    if (r < rows.count) {
        configure(configuration(static_cast<int>(rows.count - r), step));
        rows_of_tiles<1, kVectors>(rows, opened, panel, r, rows.count - r, step, y);
    }
    release();
}

// An emulator or a hypervisor may claim what it does not do: a wrong product here means no path, not wrong answers.
bool multiplies_rightly() {
    constexpr int kRows = 37, kColumns = 128;
    int8_t weights[kRows * kColumns];
    int8_t activations[kColumns * kWideTokens];
    for (int i = 0; i < kRows * kColumns; ++i) weights[i] = static_cast<int8_t>(i * 37 % 251 - 125);
    for (int i = 0; i < kColumns * kWideTokens; ++i) activations[i] = static_cast<int8_t>(i * 53 % 255 - 127);
    float ones[kWideTokens], scales[kRows];
    for (float& one : ones) one = 1.0f;
    for (float& scale : scales) scale = 1.0f;
    const Rows rows = {KIMI_INT8, KIMI_FLOAT32, kColumns, kColumns, kRows, reinterpret_cast<const uint8_t*>(weights),
                       scales,    kColumns,     1};
    const Opened opened = open_rows(rows, nullptr);
    const Panel panel = {kWideTokens, kWideTokens, activations, nullptr, ones, nullptr};
    float found[kRows * kWideTokens], expected[kRows * kWideTokens];
    multiply_amx(rows, opened, panel, found);
    multiply_plain(rows, opened, panel, expected);
    return std::memcmp(found, expected, sizeof(found)) == 0;
}

}  // namespace

void multiply_amx(const Rows& rows, const Opened& opened, const Panel& panel, float* y) {
    if (panel.lanes == kLanes)
        multiply_vectors<1>(rows, opened, panel, y);
    else
        multiply_vectors<2>(rows, opened, panel, y);
}

bool has_amx() {
    static const bool found = may_use_tiles() && multiplies_rightly();
    return found;
}

}  // namespace kimi

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
