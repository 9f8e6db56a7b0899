// Weights into the packed layout, and single rows back out of it (the embedding lookup).
//
// In: float rows, or codes and scales that are already quantised. Out: panels of 16 rows. The rule of
// rounding is that of backend/quant.py, code for code; what a row stands for is what backend/grouped.py says,
// bit for bit (the build forbids fused multiply-add here). A group that holds NaN or infinity gets the scale
// NaN: the damage stays visible.
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
    if (!has_nibbles(format)) {
        for (int w = 0; w < 8; ++w) memcpy(at + 64 * w + 4 * lane, codes + 4 * w, 4);
        return;
    }
    for (int w = 0; w < 4; ++w)
        for (int j = 0; j < 4; ++j)
            at[64 * w + 4 * lane + j] = static_cast<uint8_t>(codes[8 * w + j] | codes[8 * w + 4 + j] << 4);
}

// What the rows of one panel are made of.
struct Panel {
    uint8_t* codes;
    int8_t* steps;
    int8_t* lows;
    Half* scales;
    Half* minimums;
};

Panel panel_of(const Packed& w, const Layout& l, int expert, int panel) {
    uint8_t* base = matrix_of(w, expert);
    const auto p = static_cast<size_t>(panel);
    const size_t spans = p * static_cast<size_t>(l.spans) * kLanes;
    const size_t parts = p * static_cast<size_t>(l.groups) * static_cast<size_t>(parts_of(w.format)) * kLanes;
    return {base + p * l.panel, reinterpret_cast<int8_t*>(base + l.steps) + parts,
            reinterpret_cast<int8_t*>(base + l.lows) + parts,
            reinterpret_cast<Half*>(base + l.scales) + spans,
            reinterpret_cast<Half*>(base + l.minimums) + spans};
}

size_t group_bytes(Format format) { return has_nibbles(format) ? 256 : 512; }

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
    const Layout l = layout_of(out);
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

namespace {

// One value for each row of the panel, `count` times: from [rows, width] to [count][16], zeros where there
// are none.
template <class From, class To>
void place_columns(const From* from, int rows, int width, int count, To* to) {
    for (int i = 0; i < count; ++i)
        for (int r = 0; r < kLanes; ++r) {
            const bool there = r < rows && i < width;
            const From value = there ? from[static_cast<size_t>(r) * static_cast<size_t>(width) + i] : From{};
            memcpy(to + static_cast<size_t>(i) * kLanes + r, &value, sizeof value);
        }
}

void place_rows(const int8_t* codes, int rows, const Packed& out, int groups, const Panel& panel) {
    const size_t k = static_cast<size_t>(out.columns), bytes = group_bytes(out.format);
    for (size_t g = 0; g < static_cast<size_t>(groups); ++g) {
        const size_t count = k - g * kGroup < kGroup ? k - g * kGroup : kGroup;
        for (int r = 0; r < kLanes; ++r) {
            uint8_t group[kGroup] = {};
            if (r < rows) memcpy(group, codes + static_cast<size_t>(r) * k + g * kGroup, count);
            place_codes(group, out.format, r, panel.codes + g * bytes);
        }
    }
}

}  // namespace

void pack_codes(Pool& pool, const Codes& codes, int first, int count, const Packed& out, int expert) {
    const Layout l = layout_of(out);
    const int part = kGroup / parts_of(out.format), width = (out.columns + part - 1) / part;
    const int parts = l.groups * parts_of(out.format);
    pool.each(count_chunks(count, kLanes), [&](int chunk, int) {
        const Panel panel = panel_of(out, l, expert, first / kLanes + chunk);
        const int row = chunk * kLanes, rows = count - row < kLanes ? count - row : kLanes;
        const auto at = static_cast<size_t>(row);
        const size_t spans = at * static_cast<size_t>(l.spans), small = at * static_cast<size_t>(width);
        place_rows(codes.codes + at * static_cast<size_t>(out.columns), rows, out, l.groups, panel);
        place_columns(codes.scales + spans, rows, l.spans, l.spans, panel.scales);
        if (codes.minimums) place_columns(codes.minimums + spans, rows, l.spans, l.spans, panel.minimums);
        if (codes.steps) place_columns(codes.steps + small, rows, width, parts, panel.steps);
        if (codes.lows) place_columns(codes.lows + small, rows, width, parts, panel.lows);
    });
}

namespace {

void unpack_codes(const Panel& panel, Format format, int lane, int g, float* y /*[32]*/) {
    const uint8_t* at = panel.codes + static_cast<size_t>(g) * group_bytes(format) + 4 * lane;
    const int middle = format == Format::q4 ? 8 : 0;
    for (int k = 0; k < kGroup; ++k) {
        if (has_nibbles(format)) {
            const uint8_t pair = at[64 * (k / 8) + k % 4];
            y[k] = static_cast<float>((k % 8 < 4 ? pair & 15 : pair >> 4) - middle);
        } else {
            y[k] = static_cast<float>(static_cast<int8_t>(at[64 * (k / 4) + k % 4]));
        }
    }
}

void unpack_group(const Panel& panel, const Packed& w, int lane, int g, float* y /*[32]*/) {
    unpack_codes(panel, w.format, lane, g, y);
    const int parts = parts_of(w.format), size = kGroup / parts;
    const size_t at = static_cast<size_t>(g / w.span) * kLanes + static_cast<size_t>(lane);
    const float scale = to_float(panel.scales[at]);
    const float minimum = has_minimums(w.format) ? to_float(panel.minimums[at]) : 0.0f;
    for (int h = 0; h < parts; ++h) {
        const size_t part = static_cast<size_t>(g * parts + h) * kLanes + static_cast<size_t>(lane);
        const float d = has_steps(w.format) ? scale * panel.steps[part] : scale;
        const float low =
            has_steps(w.format) && has_minimums(w.format) ? minimum * panel.lows[part] : -minimum;
        for (int k = h * size; k < (h + 1) * size; ++k) {
            y[k] *= d;
            if (has_minimums(w.format)) y[k] -= low;
        }
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
            unpack_group(panel, w, lane, g, group);
            memcpy(y + g * kGroup, group, static_cast<size_t>(count) * sizeof(float));
        }
    }
}

}  // namespace

void embed(Pool& pool, const Packed& table, int expert, const int32_t* ids, int n, float* y) {
    const Layout l = layout_of(table);
    pool.each(count_chunks(n, 8), [&](int chunk, int) {
        const Span rows = span_of(chunk, 8, n);
        for (int i = rows.first; i < rows.last; ++i)
            unpack_row(table, l, expert, ids[i], y + static_cast<size_t>(i) * table.columns);
    });
}

}  // namespace deepfast::DF_ISA
