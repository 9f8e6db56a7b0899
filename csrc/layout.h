// Where things lie inside a packed matrix and a page of the KV cache (the pictures are in ops.h). Sizes and
// offsets only, no data.
#pragma once

#include "ops.h"

namespace deepfast {

static inline size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

constexpr bool is_grouped(Format f) { return f != Format::f32 && f != Format::bf16; }
constexpr bool has_nibbles(Format f) {
    return f == Format::q4 || f == Format::q4_min || f == Format::q4_k || f == Format::q4_k16;
}
constexpr bool has_steps(Format f) { return f >= Format::q4_k; }
constexpr bool has_minimums(Format f) { return f == Format::q4_min || (has_steps(f) && f != Format::q8_k16); }
constexpr int parts_of(Format f) {  // H
    return f == Format::q4_k16 || f == Format::q8_k16 || f == Format::q8_k16_min ? 2 : 1;
}

// One packed matrix: how many panels and groups, and the byte offsets of its parts.
struct Layout {
    int panels;       // P
    int groups;       // Q, 0 for f32 and bf16
    int spans;        // S
    size_t panel;     // bytes of values or codes in a panel
    size_t steps;     // offset of the steps
    size_t lows;      // offset of the lows
    size_t scales;    // offset of the scales
    size_t minimums;  // offset of the minimums
    size_t bytes;     // of the whole matrix, a multiple of 64
};

static inline Layout layout_of(const Packed& w) {
    Layout l{};
    l.panels = (w.rows + kLanes - 1) / kLanes;
    const size_t p = static_cast<size_t>(l.panels), k = static_cast<size_t>(w.columns);
    if (!is_grouped(w.format)) {
        l.panel = k * kLanes * (w.format == Format::f32 ? 4 : 2);
        l.bytes = round_up(p * l.panel, 64);
        return l;
    }
    l.groups = (w.columns + kGroup - 1) / kGroup;
    l.spans = static_cast<int>((int64_t{l.groups} + w.span - 1) / w.span);
    const size_t q = static_cast<size_t>(l.groups), lines = p * static_cast<size_t>(l.spans) * kLanes * 2;
    const size_t small = has_steps(w.format) ? p * q * static_cast<size_t>(parts_of(w.format)) * kLanes : 0;
    l.panel = q * kGroup * kLanes / (has_nibbles(w.format) ? 2 : 1);
    l.steps = p * l.panel;
    l.lows = l.steps + small;
    l.scales = l.lows + (has_minimums(w.format) ? small : 0);
    l.minimums = l.scales + lines;
    l.bytes = round_up(l.minimums + (has_minimums(w.format) ? lines : 0), 64);
    return l;
}

static inline uint8_t* matrix_of(const Packed& w, int expert) {
    return w.data + static_cast<size_t>(expert) * layout_of(w).bytes;
}

// One page of the KV cache, keys first: byte offsets of the other parts.
struct PageLayout {
    int columns;    // values per position: C, for q8 padded to 4
    size_t scales;  // of the keys, then of the values; q8 only
    size_t values;
    size_t bytes;
};

static inline PageLayout page_of(KVFormat format, int dim) {
    const bool coded = format == KVFormat::q8;
    const int columns = coded ? (dim + 3) / 4 * 4 : dim;
    const size_t keys = static_cast<size_t>(columns * kLanes) * (coded ? 1 : format == KVFormat::f16 ? 2 : 4);
    const size_t values = keys + (coded ? 2 * kLanes * 2 : 0);
    return {columns, keys, values, values + keys};
}

// The page of KV head 0; those of the other heads follow it.
static inline uint8_t* pages_of(const Cache& c, int layer, int block) {
    const size_t at = static_cast<size_t>(layer) * static_cast<size_t>(c.blocks) + static_cast<size_t>(block);
    return c.pages + at * static_cast<size_t>(c.heads) * page_of(c.format, c.dim).bytes;
}

}  // namespace deepfast
