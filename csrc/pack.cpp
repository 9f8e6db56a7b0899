// Weights into the packed layout, and single rows back out of it (the embedding lookup).
//
// In: float rows, or codes and scales that are already quantised. Out: panels of 16 rows. The rule of
// rounding is that of backend/quant.py, code for code. A group that holds NaN or infinity gets the scale NaN:
// the damage stays visible.
#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

struct Group {
    uint8_t codes[kGroup];
    Half scale;
};

// The entry of largest magnitude (the first on a tie), with its sign; NaN when the group holds NaN or
// infinity.
float extreme(const float* x) {
    const Floats a = load(x), b = load(x + kLanes);
    const float top = maximum(max(abs(a), abs(b)));
    const float poison = sum(add(mul(a, zero()), mul(b, zero())));
    float signed_top = 0.0f;
    for (int i = kGroup - 1; i >= 0; --i)
        if (fabsf(x[i]) == top) signed_top = x[i];
    return signed_top + poison;
}

// w / d, clamped and rounded: to the nearest even integer for q8, by adding 8.5 and cutting for q4.
void round_codes(const float* x, float scale, bool wide, int32_t* codes) {
    const Floats divisor = set(scale != 0.0f ? scale : INFINITY);
    for (int i = 0; i < kGroup; i += kLanes) {
        const Floats ratio = div(load(x + i), divisor);
        if (wide) {
            store(codes + i, round(min(set(127.0f), max(set(-127.0f), ratio))));
        } else {
            alignas(64) float shifted[kLanes];
            store(shifted, min(set(15.0f), max(zero(), add(ratio, set(8.5f)))));
            for (int j = 0; j < kLanes; ++j)
                codes[i + j] = shifted[j] > 0.0f ? static_cast<int32_t>(shifted[j]) : 0;
        }
    }
}

Group quantise(const float* x, Format format) {  // x: 32 weights of one row
    const bool wide = format == Format::q8;
    const float top = extreme(x);
    float wanted = wide ? fabsf(top) / 127.0f : top / -8.0f;
    if (fabsf(wanted) > 65504.0f) wanted = wanted < 0.0f ? -65504.0f : 65504.0f;
    Group g;
    g.scale = to_half(wanted);
    alignas(64) int32_t codes[kGroup];
    round_codes(x, to_float(g.scale), wide, codes);
    for (int i = 0; i < kGroup; ++i) g.codes[i] = static_cast<uint8_t>(codes[i]);
    return g;
}

// Codes of one row and group to their places; `at` is the start of the group in its panel.
void place_codes(const uint8_t* codes, Format format, int lane, uint8_t* at) {
    if (format == Format::q8) {
        for (int w = 0; w < 8; ++w) memcpy(at + 64 * w + 4 * lane, codes + 4 * w, 4);
        return;
    }
    for (int w = 0; w < 4; ++w)
        for (int j = 0; j < 4; ++j)
            at[64 * w + 4 * lane + j] = static_cast<uint8_t>(codes[8 * w + j] | codes[8 * w + 4 + j] << 4);
}

struct Panel {
    uint8_t* codes;
    Half* scales;
    Half* minimums;
};

Panel panel_of(const Packed& w, const Layout& l, int expert, int panel) {
    uint8_t* base = matrix_of(w, expert);
    const size_t vectors = static_cast<size_t>(panel) * static_cast<size_t>(l.groups) * kLanes;
    return {base + static_cast<size_t>(panel) * l.panel, reinterpret_cast<Half*>(base + l.scales) + vectors,
            reinterpret_cast<Half*>(base + l.minimums) + vectors};
}

size_t group_bytes(Format format) { return format == Format::q8 ? 512 : 256; }

// One row of a panel in q8 or q4; `x` is null for a padding row.
void pack_row(const float* x, int k, Format format, int lane, const Panel& panel, int groups) {
    alignas(64) float padded[kGroup];
    for (int g = 0; g < groups; ++g) {
        const int count = k - g * kGroup < kGroup ? k - g * kGroup : kGroup;
        memset(padded, 0, sizeof padded);
        if (x) memcpy(padded, x + g * kGroup, static_cast<size_t>(count) * sizeof(float));
        const Group group = quantise(padded, format);
        place_codes(group.codes, format, lane, panel.codes + static_cast<size_t>(g) * group_bytes(format));
        panel.scales[g * kLanes + lane] = group.scale;
    }
}

template <class E, class Convert>
void pack_plain(const float* x, int rows, int k, E* to, const Convert& convert) {
    for (int i = 0; i < k; ++i)
        for (int r = 0; r < kLanes; ++r)
            to[static_cast<size_t>(i) * kLanes + r] =
                convert(r < rows ? x[static_cast<size_t>(r) * k + i] : 0.0f);
}

}  // namespace

void pack(Pool& pool, const float* w, int first, int count, const Packed& out, int expert) {
    const Layout l = layout_of(out.format, out.rows, out.columns);
    const int k = out.columns;
    pool.each(count_chunks(count, kLanes), [&](int chunk, int) {
        const Panel panel = panel_of(out, l, expert, first / kLanes + chunk);
        const int row = chunk * kLanes, rows = count - row < kLanes ? count - row : kLanes;
        const float* x = w + static_cast<size_t>(row) * k;
        if (out.format == Format::f32) {
            pack_plain(x, rows, k, reinterpret_cast<float*>(panel.codes), [](float f) { return f; });
        } else if (out.format == Format::bf16) {
            pack_plain(x, rows, k, reinterpret_cast<Bfloat*>(panel.codes),
                       [](float f) { return to_bfloat(f); });
        } else {
            for (int r = 0; r < kLanes; ++r)
                pack_row(r < rows ? x + static_cast<size_t>(r) * k : nullptr, k, out.format, r, panel,
                         l.groups);
        }
    });
}

void pack_codes(Pool& pool, const int8_t* codes, const uint16_t* scales, const uint16_t* minimums, int first,
                int count, const Packed& out, int expert) {
    const Layout l = layout_of(out.format, out.rows, out.columns);
    const size_t groups = static_cast<size_t>(l.groups), step = group_bytes(out.format);
    pool.each(count_chunks(count, kLanes), [&](int chunk, int) {
        const Panel panel = panel_of(out, l, expert, first / kLanes + chunk);
        for (int r = 0; r < kLanes; ++r) {
            const size_t row = static_cast<size_t>(chunk) * kLanes + static_cast<size_t>(r);
            const bool real = row < static_cast<size_t>(count);
            for (size_t g = 0; g < groups; ++g) {
                uint8_t group[kGroup] = {};
                if (real) memcpy(group, codes + (row * groups + g) * kGroup, kGroup);
                place_codes(group, out.format, r, panel.codes + g * step);
                panel.scales[g * kLanes + r] = {real ? scales[row * groups + g] : uint16_t{0}};
                if (minimums)
                    panel.minimums[g * kLanes + r] = {real ? minimums[row * groups + g] : uint16_t{0}};
            }
        }
    });
}

namespace {

void unpack_group(const Panel& panel, Format format, int lane, int g, float* y /*[32]*/) {
    const uint8_t* at = panel.codes + static_cast<size_t>(g) * group_bytes(format) + 4 * lane;
    const float scale = to_float(panel.scales[g * kLanes + lane]);
    if (format == Format::q8) {
        for (int k = 0; k < kGroup; ++k)
            y[k] = scale * static_cast<float>(static_cast<int8_t>(at[64 * (k / 4) + k % 4]));
        return;
    }
    const bool shifted = format == Format::q4_min;
    const float minimum = shifted ? to_float(panel.minimums[g * kLanes + lane]) : 0.0f;
    for (int k = 0; k < kGroup; ++k) {
        const uint8_t pair = at[64 * (k / 8) + k % 4];
        const int code = k % 8 < 4 ? pair & 15 : pair >> 4;
        y[k] = scale * static_cast<float>(shifted ? code : code - 8) + minimum;
    }
}

void unpack_row(const Packed& w, const Layout& l, int expert, int row, float* y /*[K]*/) {
    const Panel panel = panel_of(w, l, expert, row / kLanes);
    const int lane = row % kLanes, k = w.columns;
    if (w.format == Format::f32) {
        const auto* values = reinterpret_cast<const float*>(panel.codes);
        for (int i = 0; i < k; ++i) y[i] = values[static_cast<size_t>(i) * kLanes + lane];
    } else if (w.format == Format::bf16) {
        const auto* values = reinterpret_cast<const Bfloat*>(panel.codes);
        for (int i = 0; i < k; ++i) y[i] = to_float(values[static_cast<size_t>(i) * kLanes + lane]);
    } else {
        float group[kGroup];
        for (int g = 0; g < l.groups; ++g) {
            const int count = k - g * kGroup < kGroup ? k - g * kGroup : kGroup;
            unpack_group(panel, w.format, lane, g, group);
            memcpy(y + g * kGroup, group, static_cast<size_t>(count) * sizeof(float));
        }
    }
}

}  // namespace

void embed(Pool& pool, const Packed& table, int expert, const int32_t* ids, int n, float* y) {
    const Layout l = layout_of(table.format, table.rows, table.columns);
    pool.each(count_chunks(n, 8), [&](int chunk, int) {
        const Span rows = span_of(chunk, 8, n);
        for (int i = rows.first; i < rows.last; ++i)
            unpack_row(table, l, expert, ids[i], y + static_cast<size_t>(i) * table.columns);
    });
}

}  // namespace deepfast::DF_ISA
