// y = x w^T (+ bias) for every weight format, one row or many, over panels of 16 weight rows.
//
// In: activations [N, K], packed weights. Out: [N, M]. For q8 and q4 the activations are quantised to int8
// per row and group of 32; int8 products are summed exactly, then scaled and added in float, group after
// group. Each output is summed in the same order whatever tile computes it, so a row's result never depends
// on the rows beside it.
#include <type_traits>

#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

constexpr size_t kGroupBytes = kGroup * kLanes;  // of a group's codes in a panel, one to a byte
constexpr int kBlockRows = 64;                   // rows whose sums stay in the first cache
constexpr int kBlockGroups = 16;                 // groups whose unpacked codes stay there too
constexpr int kDirectRows = 4 * kTileRows;       // up to so many it does not pay to unpack
constexpr int kReusedRows = 256;                 // rows whose inputs stay in the second cache
constexpr size_t kAhead = 2048;                  // bytes from what is used to what is asked for meanwhile

// What the dot products of a format start from, by the sum of a group's inputs; q4_min needs that sum itself.
int32_t offset_of(Format format, int32_t sum) {
    if (format == Format::q4_min) return sum;
    return format == Format::q8 ? ByteDot::start_word(sum) : NibbleDot::start_word(sum);
}

void quantise_row(const Inputs& in, Format format, size_t row, int k, int groups) {
    const float* x = in.floats + row * in.stride;
    int8_t* codes = in.codes + row * static_cast<size_t>(groups) * kGroup;
    for (int g = 0; g < groups; ++g) {
        const int count = k - g * kGroup;
        const Floats a = load_part(x + g * kGroup, count);
        const Floats b = count > kLanes ? load_part(x + g * kGroup + kLanes, count - kLanes) : zero();
        const float top = maximum(max(abs(a), abs(b)));
        const float poison = sum(add(mul(a, zero()), mul(b, zero())));  // 0, or NaN
        const float inverse = top > 1e-30f ? 127.0f / top : 0.0f;
        const Floats least = set(-127.0f);  // also what NaN becomes: its code may be anything, not overflow
        const Ints low = round(max(mul(a, set(inverse)), least));
        const Ints high = round(max(mul(b, set(inverse)), least));
        store_bytes(codes + g * kGroup, low);
        store_bytes(codes + g * kGroup + kLanes, high);
        in.scales[row * static_cast<size_t>(groups) + static_cast<size_t>(g)] =
            (top > 1e-30f ? top / 127.0f : 0.0f) + poison;
        in.offsets[row * static_cast<size_t>(groups) + static_cast<size_t>(g)] =
            offset_of(format, sum(add(low, high)));
    }
}

// The T rows of inputs that a tile reads.
template <int T>
struct QuantisedRows {
    const int8_t* codes[T];
    const float* scales[T];
    const int32_t* offsets[T];

    QuantisedRows(const Inputs& in, const size_t* rows, size_t groups) {
        for (int t = 0; t < T; ++t) {
            codes[t] = in.codes + rows[t] * groups * kGroup;
            scales[t] = in.scales + rows[t] * groups;
            offsets[t] = in.offsets + rows[t] * groups;
        }
    }
};

// The packed matrix that it reads, P panels at a time.
struct Matrix {
    const uint8_t* data;  // codes or values of panel 0
    const Half* scales;
    const Half* minimums;
    size_t panel;   // bytes of a panel's codes or values
    size_t groups;  // Q
    int columns;    // K
};

// Codes of P panels as they are packed in q4: word v of a group's 4 holds two words of codes.
template <int P>
struct PackedCodes {
    using Dot = NibbleDot;
    static constexpr size_t kBytes = kGroupBytes / 2;  // of a group in a panel
    const uint8_t* panels[P];

    // Adds the products of group g to sums[t][c], exactly.
    template <int T>
    DF_INLINE void add(const PackedCodes& w, size_t g, const QuantisedRows<T>& x, NibbleDot (&sums)[T][P]) {
        for (int v = 0; v < 4; ++v) {
            Nibbles low[P], high[P];
            DF_UNROLL
            for (int c = 0; c < P; ++c)
                load_nibbles(w.panels[c] + g * 256 + static_cast<size_t>(v) * 64, low[c], high[c]);
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

// Codes of P panels one to a byte: q8 as it is packed, or q4 unpacked. `first` is the group at `panels`.
template <class D, int P>
struct ByteCodes {
    using Dot = D;
    static constexpr size_t kBytes = kGroupBytes;
    const uint8_t* panels[P];
    size_t first;

    template <int T>
    DF_INLINE void add(const ByteCodes& w, size_t g, const QuantisedRows<T>& x, D (&sums)[T][P]) {
        DF_UNROLL
        for (int v = 0; v < 8; ++v) {
            typename D::Codes codes[P];
            DF_UNROLL
            for (int c = 0; c < P; ++c)
                codes[c] = D::load(w.panels[c] + (g - w.first) * kGroupBytes + static_cast<size_t>(v) * 64);
            DF_UNROLL
            for (int t = 0; t < T; ++t) {
                const int32_t word = load_word(x.codes[t] + g * kGroup + 4 * v);
                DF_UNROLL
                for (int c = 0; c < P; ++c) sums[t][c] = dot(sums[t][c], codes[c], word);
            }
        }
    }
};

// Asks for the codes and scales that lie kAhead bytes behind those of group g. Panels lie one behind the other:
// this runs on into the next one, where the hardware's own prefetching would start anew.
template <int P, class Codes>
DF_INLINE void fetch_ahead(const Matrix& m, size_t p, const Codes& codes, size_t g) {
    DF_UNROLL
    for (int c = 0; c < P; ++c) {
        DF_UNROLL
        for (size_t b = 0; b < Codes::kBytes; b += 64)
            prefetch(codes.panels[c] + g * Codes::kBytes + kAhead + b);
        prefetch(m.scales + ((p + static_cast<size_t>(c)) * m.groups + g) * kLanes + kAhead / 8);
    }
}

// acc[t][c] += scaled products of groups [first, last), group after group. kStream: of weights that are read
// from memory and used once.
template <bool kMinimums, bool kStream, class Codes, int T, int P>
DF_INLINE void add_groups(const Matrix& m, size_t p, const Codes& codes, const QuantisedRows<T>& x,
                          Span groups, Floats (&acc)[T][P]) {
    using Dot = typename Codes::Dot;
    for (auto g = static_cast<size_t>(groups.first); g < static_cast<size_t>(groups.last); ++g) {
        Dot sums[T][P];
        DF_UNROLL
        for (int t = 0; t < T; ++t)
            for (int c = 0; c < P; ++c) sums[t][c] = Dot::start(kMinimums ? 0 : x.offsets[t][g]);
        if (kStream) fetch_ahead<P>(m, p, codes, g);
        Codes::template add<T>(codes, g, x, sums);
        DF_UNROLL
        for (int c = 0; c < P; ++c) {
            const size_t at = ((p + static_cast<size_t>(c)) * m.groups + g) * kLanes;
            const Floats scale = load(m.scales + at);
            DF_UNROLL
            for (int t = 0; t < T; ++t) {
                const float sx = x.scales[t][g];
                acc[t][c] = fma(to_float(finish(sums[t][c])), mul(scale, set(sx)), acc[t][c]);
                if (kMinimums)
                    acc[t][c] =
                        fma(load(m.minimums + at), set(sx * static_cast<float>(x.offsets[t][g])), acc[t][c]);
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
        using Codes = std::conditional_t<kFormat == Format::q8, ByteCodes<ByteDot, P>, PackedCodes<P>>;
        Codes codes{};
        for (int c = 0; c < P; ++c) codes.panels[c] = m.data + (at + static_cast<size_t>(c)) * m.panel;
        const QuantisedRows<T> x(*job.inputs, rows, m.groups);
        add_groups<kFormat == Format::q4_min, true>(m, at, codes, x, {0, static_cast<int>(m.groups)}, acc);
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

// Many rows: the codes of a few groups are unpacked to bytes once for a block of rows, whose sums wait in memory.
template <int P>
struct Block {
    alignas(64) float acc[kBlockRows][P][kLanes];
    alignas(64) uint8_t codes[P][kBlockGroups * kGroupBytes];
};

void unpack_groups(const uint8_t* packed, int groups, uint8_t* to) {
    for (int v = 0; v < groups * 4; ++v) {
        Nibbles low, high;
        load_nibbles(packed + v * 64, low, high);
        store(to + v * 128, low);
        store(to + v * 128 + 64, high);
    }
}

template <Format kFormat, int T, int P>
void add_tiles(const Product& job, const Matrix& m, size_t p, int n, int i, int count, Span groups,
               Block<P>& block) {
    using Dot = std::conditional_t<kFormat == Format::q8, ByteDot, NibbleDot>;
    ByteCodes<Dot, P> codes{{}, static_cast<size_t>(groups.first)};
    for (int c = 0; c < P; ++c)
        codes.panels[c] = kFormat == Format::q8 ? m.data + (p + static_cast<size_t>(c)) * m.panel +
                                                      static_cast<size_t>(groups.first) * kGroupBytes
                                                : block.codes[c];
    for (; i + T <= count; i += T) {
        size_t rows[T];
        rows_of<T>(job, n + i, rows);
        const QuantisedRows<T> x(*job.inputs, rows, m.groups);
        Floats acc[T][P];
        DF_UNROLL
        for (int t = 0; t < T; ++t)
            for (int c = 0; c < P; ++c) acc[t][c] = load(block.acc[i + t][c]);
        add_groups<kFormat == Format::q4_min, false>(m, p, codes, x, groups, acc);
        DF_UNROLL
        for (int t = 0; t < T; ++t)
            for (int c = 0; c < P; ++c) store(block.acc[i + t][c], acc[t][c]);
    }
    if constexpr (T > 1) {
        if (i < count) add_tiles<kFormat, T - 1, P>(job, m, p, n, i, count, groups, block);
    }
}

template <Format kFormat, int P>
void multiply_block(const Product& job, const Matrix& m, int p, int n, int count) {
    Block<P> block;
    memset(block.acc, 0, sizeof block.acc);
    const int groups = static_cast<int>(m.groups);
    for (int g = 0; g < groups; g += kBlockGroups) {
        const Span span = span_of(g / kBlockGroups, kBlockGroups, groups);
        for (int c = 0; kFormat != Format::q8 && c < P; ++c)
            unpack_groups(m.data + static_cast<size_t>(p + c) * m.panel + static_cast<size_t>(g) * 256,
                          span.last - span.first, block.codes[c]);
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

template <Format kFormat>
void multiply_format(const Product& job, int first, int last) {
    const Layout l = layout_of(job.w.format, job.w.rows, job.w.columns);
    const uint8_t* base = matrix_of(job.w, job.expert);
    const Matrix m{base,
                   reinterpret_cast<const Half*>(base + l.scales),
                   reinterpret_cast<const Half*>(base + l.minimums),
                   l.panel,
                   static_cast<size_t>(l.groups),
                   job.w.columns};
    if (job.n == 1) {
        int p = first;
        constexpr bool kNibbles = kFormat == Format::q4 || kFormat == Format::q4_min;
        constexpr int kPanels = kNibbles ? kNibblePanels : kStreamPanels;
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

}  // namespace

Inputs take_inputs(Scratch& scratch, const Packed& w, const float* x, int n) {
    Inputs in{x, static_cast<size_t>(w.columns), nullptr, nullptr, nullptr};
    if (!is_grouped(w.format)) return in;
    const size_t groups = static_cast<size_t>(n) * static_cast<size_t>((w.columns + kGroup - 1) / kGroup);
    in.codes = scratch.take<int8_t>(groups * kGroup);
    in.scales = scratch.take<float>(groups);
    in.offsets = scratch.take<int32_t>(groups);
    return in;
}

void prepare_inputs(const Inputs& in, const Packed& w, int first, int last) {
    if (!is_grouped(w.format)) return;
    const int groups = (w.columns + kGroup - 1) / kGroup;
    for (int row = first; row < last; ++row)
        quantise_row(in, w.format, static_cast<size_t>(row), w.columns, groups);
}

void multiply(const Product& job, int first, int last) {
    switch (job.w.format) {
        case Format::f32: return multiply_format<Format::f32>(job, first, last);
        case Format::bf16: return multiply_format<Format::bf16>(job, first, last);
        case Format::q8: return multiply_format<Format::q8>(job, first, last);
        case Format::q4: return multiply_format<Format::q4>(job, first, last);
        case Format::q4_min: return multiply_format<Format::q4_min>(job, first, last);
    }
}

int panels_per_chunk(int panels, int threads) {
    const int size = panels / (threads * 8) / kStreamPanels * kStreamPanels;
    return size > kStreamPanels ? size : kStreamPanels;
}

size_t linear_scratch(const Packed& w, int n) {
    Scratch count{nullptr};
    take_inputs(count, w, nullptr, n);
    return count.used;
}

void linear(Pool& pool, const float* x, int n, const Packed& w, const float* bias, float* y, void* scratch) {
    Scratch memory{static_cast<char*>(scratch)};
    const Inputs inputs = take_inputs(memory, w, x, n);
    constexpr int kRowsPerChunk = 4;
    pool.each(count_chunks(n, kRowsPerChunk), [&](int chunk, int) {
        const Span rows = span_of(chunk, kRowsPerChunk, n);
        prepare_inputs(inputs, w, rows.first, rows.last);
    });
    const Product job{&inputs, nullptr, n, w, 0, bias, y};
    const int panels = (w.rows + kLanes - 1) / kLanes;
    const bool tiny = static_cast<int64_t>(w.rows) * w.columns * n < 65536;
    const int size = tiny ? panels : panels_per_chunk(panels, pool.threads());
    pool.each(count_chunks(panels, size), [&](int chunk, int) {
        const Span span = span_of(chunk, size, panels);
        multiply(job, span.first, span.last);
    });
}

}  // namespace deepfast::DF_ISA
