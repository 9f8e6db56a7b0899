// Where things lie inside a packed matrix and a page of the KV cache (the pictures are in ops.h). Sizes and
// offsets only, no data.
#pragma once

#include "ops.h"

namespace deepfast {

static inline size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }
static inline constexpr bool is_grouped(Format f) { return f == Format::q8 || f == Format::q4 || f == Format::q4_min; }

// One packed matrix: how many panels and groups, and the byte offsets of its parts.
struct Layout {
    int panels;       // P
    int groups;       // Q, 0 for f32 and bf16
    size_t panel;     // bytes of values or codes in a panel
    size_t scales;    // offset of the scales
    size_t minimums;  // offset of the minimums
    size_t bytes;     // of the whole matrix, a multiple of 64
};

static inline Layout layout_of(Format format, int rows, int columns) {
    Layout l{};
    l.panels = (rows + kLanes - 1) / kLanes;
    const size_t p = static_cast<size_t>(l.panels), k = static_cast<size_t>(columns);
    if (!is_grouped(format)) {
        l.panel = k * kLanes * (format == Format::f32 ? 4 : 2);
        l.scales = l.minimums = p * l.panel;
        l.bytes = round_up(p * l.panel, 64);
        return l;
    }
    l.groups = (columns + kGroup - 1) / kGroup;
    const size_t q = static_cast<size_t>(l.groups), vectors = p * q * kLanes * 2;
    l.panel = q * kGroup * kLanes / (format == Format::q8 ? 1 : 2);
    l.scales = p * l.panel;
    l.minimums = l.scales + vectors;
    l.bytes = round_up(l.minimums + (format == Format::q4_min ? vectors : 0), 64);
    return l;
}

static inline uint8_t* matrix_of(const Packed& w, int expert) {
    return w.data + static_cast<size_t>(expert) * layout_of(w.format, w.rows, w.columns).bytes;
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
