// T rows of activations times P panels of weights: the inner loops of linear.cpp, for every weight format.
//
// In: activations as floats or int8 (Inputs), a packed matrix. Out: sums in registers, or in a block of
// memory where rows are many. int8 products are summed exactly, multiplied by the steps of two-level formats
// exactly, then scaled and added in float, group after group: the same order whatever tile computes it.
// Included by the files that hold the kernels of some formats each (linear_*.cpp), which compile beside each
// other.
#pragma once

#include "scales.h"

// Where lanes are loops, more unrolling around them gives minutes of compilation and no speed.
#if !defined(DF_USE_AVX2) && !defined(DF_USE_AVX512)
#undef DF_UNROLL
#define DF_UNROLL
#endif

namespace deepfast::DF_ISA {
namespace {

constexpr size_t kGroupBytes = kGroup * kLanes;  // of a group's codes in a panel, one to a byte
constexpr int kBlockRows = 64;                   // rows whose sums stay in the first cache
constexpr int kBlockGroups = 16;                 // groups whose unpacked codes stay there too
constexpr int kDirectRows = 4 * kTileRows;       // up to so many it does not pay to unpack
constexpr int kReusedRows = 256;                 // rows whose inputs stay in the second cache
constexpr size_t kAhead = 2048;                  // bytes from what is used to what is asked for meanwhile

// The T rows of inputs that a tile reads.
template <int T>
struct QuantisedRows {
    const int8_t* codes[T];
    const float* scales[T];
    const int32_t* offsets[T];
    const float* sums[T];

    QuantisedRows(const Inputs& in, const size_t* rows, size_t groups, size_t parts) {
        for (int t = 0; t < T; ++t) {
            codes[t] = in.codes + rows[t] * groups * kGroup;
            scales[t] = in.scales + rows[t] * groups;
            offsets[t] = in.offsets + rows[t] * groups * parts;
            sums[t] = in.sums ? in.sums + rows[t] * groups * parts : nullptr;
        }
    }
};

// Codes of P panels as they are packed in 4 bits: word v of a group's 4 holds two words of codes.
template <int P>
struct PackedCodes {
    using Dot = NibbleDot;
    static constexpr size_t kBytes = kGroupBytes / 2;  // of a group in a panel
    const uint8_t* panels[P];

    // Adds the products of part h of H of group g to sums[t][c], exactly.
    template <int H, int T>
    DF_INLINE void add(const PackedCodes& w, size_t g, int h, const QuantisedRows<T>& x,
                       NibbleDot (&sums)[T][P]) {
        for (int v = h * 4 / H; v < (h + 1) * 4 / H; ++v) {
            Nibbles low[P], high[P];
            DF_UNROLL
            for (int c = 0; c < P; ++c)
                load_nibbles(w.panels[c] + g * kBytes + static_cast<size_t>(v) * 64, low[c], high[c]);
            DF_UNROLL
            for (int t = 0; t < T; ++t) {
                const int8_t* at = x.codes[t] + g * kGroup + 8 * v;
                const int32_t x0 = load_word(at), x1 = load_word(at + 4);
                DF_UNROLL
                for (int c = 0; c < P; ++c) sums[t][c] = dot(dot(sums[t][c], low[c], x0), high[c], x1);
            }
        }
    }
};

// Codes of P panels one to a byte: 8 bits as they are packed, or 4 unpacked. `first` is the group at
// `panels`.
template <class D, int P>
struct ByteCodes {
    using Dot = D;
    static constexpr size_t kBytes = kGroupBytes;
    const uint8_t* panels[P];
    size_t first;

    // The same; with steps, products are multiplied by them first.
    template <int H, int T, class... S>
    DF_INLINE void add(const ByteCodes& w, size_t g, int h, const QuantisedRows<T>& x, D (&sums)[T][P],
                       const S (&... steps)[P]) {
        DF_UNROLL
        for (int v = h * 8 / H; v < (h + 1) * 8 / H; ++v) {
            typename D::Codes codes[P];
            DF_UNROLL
            for (int c = 0; c < P; ++c)
                codes[c] = D::load(w.panels[c] + (g - w.first) * kBytes + static_cast<size_t>(v) * 64);
            DF_UNROLL
            for (int t = 0; t < T; ++t) {
                const int32_t word = load_word(x.codes[t] + g * kGroup + 4 * v);
                DF_UNROLL
                for (int c = 0; c < P; ++c) sums[t][c] = dot(sums[t][c], codes[c], word, steps[c]...);
            }
        }
    }
};

// Asks for the codes and scales that lie kAhead bytes behind those of group g. Panels lie one behind the
// other: this runs on into the next one, where the hardware's own prefetching would start anew.
template <Format kFormat, int P, class Codes>
DF_INLINE void fetch_ahead(const Matrix& m, size_t p, const Codes& codes, size_t g) {
    constexpr size_t kParts = parts_of(kFormat), kGroups = kAhead / Codes::kBytes;
    DF_UNROLL
    for (int c = 0; c < P; ++c) {
        DF_UNROLL
        for (size_t b = 0; b < Codes::kBytes; b += 64)
            prefetch(codes.panels[c] + g * Codes::kBytes + kAhead + b);
        const size_t at = (p + static_cast<size_t>(c)) * m.groups + g;
        if constexpr (has_steps(kFormat)) {
            prefetch(m.steps + (at + kGroups) * kParts * kLanes);
            if (has_minimums(kFormat)) prefetch(m.lows + (at + kGroups) * kParts * kLanes);
        } else {
            prefetch(m.scales + at * kLanes + kAhead / 8);
        }
    }
}

// sums[t][c]: what part h of group g starts from.
template <Format kFormat, class Dot, int T, int P>
DF_INLINE void start_sums(const QuantisedRows<T>& x, size_t g, int h, Dot (&sums)[T][P]) {
    constexpr bool kFromZero = has_minimums(kFormat) && has_nibbles(kFormat);
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int c = 0; c < P; ++c)
            sums[t][c] =
                Dot::start(kFromZero ? 0 : x.offsets[t][g * parts_of(kFormat) + static_cast<size_t>(h)]);
}

// The products of group g, exactly; where its parts have steps, times these.
template <Format kFormat, class Codes, class Scales, int T, int P>
DF_INLINE void multiply_group(const Codes& codes, const Scales& scales, const QuantisedRows<T>& x, size_t g,
                              Ints (&totals)[T][P]) {
    constexpr int H = parts_of(kFormat);
    using Dot = typename Codes::Dot;
    constexpr bool kInside = has_part_steps(kFormat) && Dot::kStepsInside;
    Dot sums[T][P];
    DF_UNROLL
    for (int h = 0; h < H; ++h) {
        Steps steps[P];
        if constexpr (has_part_steps(kFormat)) {
            DF_UNROLL
            for (int c = 0; c < P; ++c) steps[c] = scales.steps(c, h);
        }
        if (h == 0 || !kInside) start_sums<kFormat>(x, g, h, sums);
        if constexpr (kInside) {
            Codes::template add<H, T>(codes, g, h, x, sums, steps);
        } else {
            Codes::template add<H, T>(codes, g, h, x, sums);
        }
        if (kInside && h + 1 < H) continue;
        DF_UNROLL
        for (int t = 0; t < T; ++t)
            for (int c = 0; c < P; ++c) {
                if constexpr (has_part_steps(kFormat) && !kInside) {
                    const Ints part = finish(sums[t][c], steps[c]);
                    totals[t][c] = h == 0 ? part : add(totals[t][c], part);
                } else {
                    totals[t][c] = finish(sums[t][c]);
                }
            }
    }
}

// acc[t][c] += scaled products of groups [first, last), group after group. kStream: of weights that are read
// from memory and used once.
template <Format kFormat, bool kStream, class Codes, class Scales, int T, int P>
DF_INLINE void add_groups(const Matrix& m, size_t p, const Codes& codes, Scales& scales,
                          const QuantisedRows<T>& x, Span groups, Floats (&acc)[T][P]) {
    constexpr int H = parts_of(kFormat);
    for (auto g = static_cast<size_t>(groups.first); g < static_cast<size_t>(groups.last); ++g) {
        if (kStream) fetch_ahead<kFormat, P>(m, p, codes, g);
        scales.reach(g);
        Ints totals[T][P];
        multiply_group<kFormat>(codes, scales, x, g, totals);
        DF_UNROLL
        for (int c = 0; c < P; ++c) {
            const Floats scale = scales.scale(c);
            DF_UNROLL
            for (int t = 0; t < T; ++t)
                acc[t][c] = fma(to_float(totals[t][c]), mul(scale, set(x.scales[t][g])), acc[t][c]);
            if constexpr (has_minimums(kFormat)) {
                DF_UNROLL
                for (int h = 0; h < H; ++h) {
                    const Floats minimum = scales.minimum(c, h);
                    DF_UNROLL
                    for (int t = 0; t < T; ++t)
                        acc[t][c] = fma(minimum, set(x.sums[t][g * H + static_cast<size_t>(h)]), acc[t][c]);
                }
            }
        }
    }
}

template <class E, int T, int P>
DF_INLINE void tile_plain(const Matrix& m, size_t p, const Inputs& in, const size_t* rows,
                          Floats (&acc)[T][P]) {
    const float* x[T];
    const E* w[P];
    for (int t = 0; t < T; ++t) x[t] = in.floats + rows[t] * in.stride;
    for (int c = 0; c < P; ++c)
        w[c] = reinterpret_cast<const E*>(m.data + (p + static_cast<size_t>(c)) * m.panel);
    for (int k = 0; k < m.columns; ++k) {
        Floats values[P];
        DF_UNROLL
        for (int c = 0; c < P; ++c) values[c] = load(w[c] + static_cast<size_t>(k) * kLanes);
        DF_UNROLL
        for (int t = 0; t < T; ++t) {
            const Floats xk = set(x[t][k]);
            DF_UNROLL
            for (int c = 0; c < P; ++c) acc[t][c] = fma(values[c], xk, acc[t][c]);
        }
    }
}

template <int T>
void rows_of(const Product& job, int n, size_t (&rows)[T]) {
    for (int t = 0; t < T; ++t) rows[t] = static_cast<size_t>(job.row ? job.row[n + t] : n + t);
}

// y of rows n, n + 1 .. of panel p
void store_outputs(const Product& job, int p, int n, const Floats& acc) {
    const int first = p * kLanes, count = job.w.rows - first;
    const Floats bias = job.bias ? load_part(job.bias + first, count) : zero();
    store_part(job.y + static_cast<size_t>(n) * static_cast<size_t>(job.w.rows) + first, add(acc, bias),
               count);
}

// T rows and P panels straight from the packed codes.
template <Format kFormat, int T, int P>
DF_INLINE void tile(const Product& job, const Matrix& m, int p, int n) {
    size_t rows[T];
    rows_of<T>(job, n, rows);
    Floats acc[T][P];
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int c = 0; c < P; ++c) acc[t][c] = zero();
    const auto at = static_cast<size_t>(p);
    if constexpr (kFormat == Format::f32) tile_plain<float, T, P>(m, at, *job.inputs, rows, acc);
    if constexpr (kFormat == Format::bf16) tile_plain<Bfloat, T, P>(m, at, *job.inputs, rows, acc);
    if constexpr (is_grouped(kFormat)) {
        using Codes = std::conditional_t<has_nibbles(kFormat), PackedCodes<P>, ByteCodes<ByteDot, P>>;
        Codes codes{};
        for (int c = 0; c < P; ++c) codes.panels[c] = m.data + (at + static_cast<size_t>(c)) * m.panel;
        const QuantisedRows<T> x(*job.inputs, rows, m.groups, parts_of(kFormat));
        PackedScales<kFormat> scales(m, at, 0);
        add_groups<kFormat, true>(m, at, codes, scales, x, {0, static_cast<int>(m.groups)}, acc);
    }
    for (int c = 0; c < P; ++c)
        for (int t = 0; t < T; ++t) store_outputs(job, p + c, n + t, acc[t][c]);
}

// Rows from n to `last` in tiles of T, the rest in smaller ones.
template <Format kFormat, int T, int P>
void tiles(const Product& job, const Matrix& m, int p, int n, int last) {
    for (; n + T <= last; n += T) tile<kFormat, T, P>(job, m, p, n);
    if constexpr (T > 1) {
        if (n < last) tiles<kFormat, T - 1, P>(job, m, p, n, last);
    }
}

// Many rows: the codes and scales of a few groups are unpacked once for a block of rows, whose sums wait in
// memory.
template <Format kFormat, int P>
struct Block {
    alignas(64) float acc[kBlockRows][P][kLanes];
    alignas(64) uint8_t codes[P][has_nibbles(kFormat) ? kBlockGroups * kGroupBytes : 1];
    BlockScales<kFormat, P, kBlockGroups> scales;
};

DF_INLINE void unpack_groups(const uint8_t* packed, int groups, uint8_t* to) {
    for (int v = 0; v < groups * 4; ++v) {
        Nibbles low, high;
        load_nibbles(packed + v * 64, low, high);
        store(to + v * 128, low);
        store(to + v * 128 + 64, high);
    }
}

template <Format kFormat, int T, int P>
void add_tiles(const Product& job, const Matrix& m, size_t p, int n, int i, int count, Span groups,
               Block<kFormat, P>& block) {
    ByteCodes<DotOf<kFormat>, P> codes{{}, static_cast<size_t>(groups.first)};
    for (int c = 0; c < P; ++c)
        codes.panels[c] = has_nibbles(kFormat) ? block.codes[c]
                                               : m.data + (p + static_cast<size_t>(c)) * m.panel +
                                                     static_cast<size_t>(groups.first) * kGroupBytes;
    BlockReader<kFormat, P, kBlockGroups> scales(block.scales, static_cast<size_t>(groups.first));
    for (; i + T <= count; i += T) {
        size_t rows[T];
        rows_of<T>(job, n + i, rows);
        const QuantisedRows<T> x(*job.inputs, rows, m.groups, parts_of(kFormat));
        Floats acc[T][P];
        DF_UNROLL
        for (int t = 0; t < T; ++t)
            for (int c = 0; c < P; ++c) acc[t][c] = load(block.acc[i + t][c]);
        add_groups<kFormat, false>(m, p, codes, scales, x, groups, acc);
        DF_UNROLL
        for (int t = 0; t < T; ++t)
            for (int c = 0; c < P; ++c) store(block.acc[i + t][c], acc[t][c]);
    }
    if constexpr (T > 1) {
        if (i < count) add_tiles<kFormat, T / 2, P>(job, m, p, n, i, count, groups, block);
    }
}

template <Format kFormat, int P>
void multiply_block(const Product& job, const Matrix& m, int p, int n, int count) {
    Block<kFormat, P> block;
    memset(block.acc, 0, sizeof block.acc);
    const int groups = static_cast<int>(m.groups);
    for (int g = 0; g < groups; g += kBlockGroups) {
        const Span span = span_of(g / kBlockGroups, kBlockGroups, groups);
        for (int c = 0; has_nibbles(kFormat) && c < P; ++c)
            unpack_groups(m.data + static_cast<size_t>(p + c) * m.panel + static_cast<size_t>(g) * 256,
                          span.last - span.first, block.codes[c]);
        block.scales.fill(m, static_cast<size_t>(p), static_cast<size_t>(span.first),
                          static_cast<size_t>(span.last));
        add_tiles<kFormat, kTileRows, P>(job, m, static_cast<size_t>(p), n, 0, count, span, block);
    }
    for (int i = 0; i < count; ++i)
        for (int c = 0; c < P; ++c) store_outputs(job, p + c, n + i, load(block.acc[i][c]));
}

// Some rows of P panels from p on.
template <Format kFormat, int P>
void multiply_rows(const Product& job, const Matrix& m, int p, Span rows) {
    if constexpr (is_grouped(kFormat)) {
        if (rows.last - rows.first > kDirectRows) {
            for (int n = rows.first; n < rows.last; n += kBlockRows)
                multiply_block<kFormat, P>(job, m, p, n,
                                           rows.last - n < kBlockRows ? rows.last - n : kBlockRows);
            return;
        }
    }
    tiles<kFormat, kTileRows, P>(job, m, p, rows.first, rows.last);
}

}  // namespace

template <Format kFormat>
void multiply_format(const Product& job, int first, int last) {
    const Layout l = layout_of(job.w);
    const uint8_t* base = matrix_of(job.w, job.expert);
    const Matrix m{base,
                   reinterpret_cast<const int8_t*>(base + l.steps),
                   reinterpret_cast<const int8_t*>(base + l.lows),
                   reinterpret_cast<const Half*>(base + l.scales),
                   reinterpret_cast<const Half*>(base + l.minimums),
                   l.panel,
                   static_cast<size_t>(l.groups),
                   static_cast<size_t>(l.spans),
                   static_cast<size_t>(job.w.span),
                   job.w.columns};
    if (job.n == 1) {
        int p = first;
        constexpr int kPanels = has_nibbles(kFormat) ? kNibblePanels : kStreamPanels;
        for (; p + kPanels <= last; p += kPanels) tile<kFormat, 1, kPanels>(job, m, p, 0);
        for (; p < last; ++p) tile<kFormat, 1, 1>(job, m, p, 0);
        return;
    }
    for (int n = 0; n < job.n; n += kReusedRows) {
        const Span rows = span_of(n / kReusedRows, kReusedRows, job.n);
        int p = first;
        for (; p + kTilePanels <= last; p += kTilePanels)
            multiply_rows<kFormat, kTilePanels>(job, m, p, rows);
        for (; p < last; ++p) multiply_rows<kFormat, 1>(job, m, p, rows);
    }
}

}  // namespace deepfast::DF_ISA
