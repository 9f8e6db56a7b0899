// y = x w^T (+ bias) for every weight format, one row or many, over panels of 16 weight rows.
//
// In: activations [N, K], packed weights. Out: [N, M]. For q8 and q4 the activations are quantised to int8
// per row and group of 32; int8 products are summed exactly, then scaled and added in float, group after
// group. Each output is summed in the same order whatever tile computes it, so a row's result never depends
// on the rows beside it.
#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

void quantise_row(const Inputs& in, size_t row, int k, int groups) {
    const float* x = in.floats + row * in.stride;
    int8_t* codes = in.codes + row * static_cast<size_t>(groups) * kGroup;
    for (int g = 0; g < groups; ++g) {
        const int count = k - g * kGroup;
        const Floats a = load_part(x + g * kGroup, count);
        const Floats b = count > kLanes ? load_part(x + g * kGroup + kLanes, count - kLanes) : zero();
        const float top = maximum(max(abs(a), abs(b)));
        const float poison = sum(add(mul(a, zero()), mul(b, zero())));  // 0, or NaN
        const float inverse = top > 1e-30f ? 127.0f / top : 0.0f;
        alignas(64) int32_t whole[kGroup];
        store(whole, round(mul(a, set(inverse))));
        store(whole + kLanes, round(mul(b, set(inverse))));
        int32_t total = 0;
        for (int i = 0; i < kGroup; ++i) {
            const auto code = static_cast<int8_t>(whole[i]);
            codes[g * kGroup + i] = code;
            total += code;
        }
        in.scales[row * static_cast<size_t>(groups) + static_cast<size_t>(g)] =
            (top > 1e-30f ? top / 127.0f : 0.0f) + poison;
        in.sums[row * static_cast<size_t>(groups) + static_cast<size_t>(g)] = total;
    }
}

// The T rows of inputs that a tile reads.
template <int T>
struct QuantisedRows {
    const int8_t* codes[T];
    const float* scales[T];
    const int32_t* sums[T];

    QuantisedRows(const Inputs& in, const size_t* rows, size_t groups) {
        for (int t = 0; t < T; ++t) {
            codes[t] = in.codes + rows[t] * groups * kGroup;
            scales[t] = in.scales + rows[t] * groups;
            sums[t] = in.sums + rows[t] * groups;
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

// Adds the products of one group of 32 to sums[t][c], exactly.
template <int T, int P>
DF_INLINE void dot_nibbles(const uint8_t* const (&w)[P], const QuantisedRows<T>& x, size_t g,
                           NibbleDot (&sums)[T][P]) {
    for (int v = 0; v < 4; ++v) {
        Nibbles low[P], high[P];
        DF_UNROLL
        for (int c = 0; c < P; ++c)
            load_nibbles(w[c] + g * 256 + static_cast<size_t>(v) * 64, low[c], high[c]);
        DF_UNROLL
        for (int t = 0; t < T; ++t) {
            const int8_t* at = x.codes[t] + g * kGroup + 8 * v;
            const int32_t x0 = load_word(at), x1 = load_word(at + 4);
            DF_UNROLL
            for (int c = 0; c < P; ++c) sums[t][c] = dot(dot(sums[t][c], low[c], x0), high[c], x1);
        }
    }
}

template <bool kMinimums, int T, int P>
DF_INLINE void tile_q4(const Matrix& m, size_t p, const Inputs& in, const size_t* rows, Floats (&acc)[T][P]) {
    const QuantisedRows<T> x(in, rows, m.groups);
    const uint8_t* w[P];
    for (int c = 0; c < P; ++c) w[c] = m.data + (p + static_cast<size_t>(c)) * m.panel;
    for (size_t g = 0; g < m.groups; ++g) {
        NibbleDot sums[T][P];
        DF_UNROLL
        for (int t = 0; t < T; ++t)
            for (int c = 0; c < P; ++c) sums[t][c] = NibbleDot::zero();
        dot_nibbles<T, P>(w, x, g, sums);
        DF_UNROLL
        for (int c = 0; c < P; ++c) {
            const size_t at = ((p + static_cast<size_t>(c)) * m.groups + g) * kLanes;
            const Floats scale = load(m.scales + at);
            DF_UNROLL
            for (int t = 0; t < T; ++t) {
                const float sx = x.scales[t][g];
                const int32_t centre = kMinimums ? 0 : 8 * x.sums[t][g];
                acc[t][c] = fma(to_float(finish(sums[t][c], centre)), mul(scale, set(sx)), acc[t][c]);
                if (kMinimums)
                    acc[t][c] =
                        fma(load(m.minimums + at), set(sx * static_cast<float>(x.sums[t][g])), acc[t][c]);
            }
        }
    }
}

template <int T, int P>
DF_INLINE void tile_q8(const Matrix& m, size_t p, const Inputs& in, const size_t* rows, Floats (&acc)[T][P]) {
    const QuantisedRows<T> x(in, rows, m.groups);
    for (size_t g = 0; g < m.groups; ++g) {
        ByteDot sums[T][P];
        DF_UNROLL
        for (int t = 0; t < T; ++t)
            for (int c = 0; c < P; ++c) sums[t][c] = ByteDot::zero();
        for (int v = 0; v < 8; ++v) {
            DF_UNROLL
            for (int c = 0; c < P; ++c) {
                const Bytes w = load_bytes(m.data + (p + static_cast<size_t>(c)) * m.panel + g * 512 +
                                           static_cast<size_t>(v) * 64);
                DF_UNROLL
                for (int t = 0; t < T; ++t)
                    sums[t][c] = dot(sums[t][c], w, load_word(x.codes[t] + g * kGroup + 4 * v));
            }
        }
        DF_UNROLL
        for (int c = 0; c < P; ++c) {
            const Floats scale = load(m.scales + ((p + static_cast<size_t>(c)) * m.groups + g) * kLanes);
            DF_UNROLL
            for (int t = 0; t < T; ++t)
                acc[t][c] = fma(to_float(finish(sums[t][c], x.sums[t][g])), mul(scale, set(x.scales[t][g])),
                                acc[t][c]);
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

template <Format kFormat, int T, int P>
DF_INLINE void tile(const Product& job, const Matrix& m, int p, int n) {
    size_t rows[T];
    for (int t = 0; t < T; ++t) rows[t] = static_cast<size_t>(job.row ? job.row[n + t] : n + t);
    Floats acc[T][P];
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int c = 0; c < P; ++c) acc[t][c] = zero();
    const auto at = static_cast<size_t>(p);
    if constexpr (kFormat == Format::f32) tile_plain<float, T, P>(m, at, *job.inputs, rows, acc);
    if constexpr (kFormat == Format::bf16) tile_plain<Bfloat, T, P>(m, at, *job.inputs, rows, acc);
    if constexpr (kFormat == Format::q8) tile_q8<T, P>(m, at, *job.inputs, rows, acc);
    if constexpr (kFormat == Format::q4) tile_q4<false, T, P>(m, at, *job.inputs, rows, acc);
    if constexpr (kFormat == Format::q4_min) tile_q4<true, T, P>(m, at, *job.inputs, rows, acc);
    for (int c = 0; c < P; ++c) {
        const int first = (p + c) * kLanes, count = job.w.rows - first;
        const Floats bias = job.bias ? load_part(job.bias + first, count) : zero();
        for (int t = 0; t < T; ++t)
            store_part(job.y + static_cast<size_t>(n + t) * static_cast<size_t>(job.w.rows) + first,
                       add(acc[t][c], bias), count);
    }
}

// Rows from n on in tiles of T, the rest in smaller ones.
template <Format kFormat, int T, int P>
void tiles(const Product& job, const Matrix& m, int p, int n) {
    for (; n + T <= job.n; n += T) tile<kFormat, T, P>(job, m, p, n);
    if constexpr (T > 1) {
        if (n < job.n) tiles<kFormat, T / 2, P>(job, m, p, n);
    }
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
    int p = first;
    if (job.n == 1) {
        for (; p + kStreamPanels <= last; p += kStreamPanels) tile<kFormat, 1, kStreamPanels>(job, m, p, 0);
        for (; p < last; ++p) tile<kFormat, 1, 1>(job, m, p, 0);
        return;
    }
    for (; p + kTilePanels <= last; p += kTilePanels) tiles<kFormat, kTileRows, kTilePanels>(job, m, p, 0);
    if constexpr (kTilePanels > 1) {
        for (; p < last; ++p) tiles<kFormat, kTileRows, 1>(job, m, p, 0);
    }
}

}  // namespace

Inputs take_inputs(Scratch& scratch, const Packed& w, const float* x, int n) {
    Inputs in{x, static_cast<size_t>(w.columns), nullptr, nullptr, nullptr};
    if (!is_grouped(w.format)) return in;
    const size_t groups = static_cast<size_t>(n) * static_cast<size_t>((w.columns + kGroup - 1) / kGroup);
    in.codes = scratch.take<int8_t>(groups * kGroup);
    in.scales = scratch.take<float>(groups);
    in.sums = scratch.take<int32_t>(groups);
    return in;
}

void prepare_inputs(const Inputs& in, const Packed& w, int first, int last) {
    if (!is_grouped(w.format)) return;
    const int groups = (w.columns + kGroup - 1) / kGroup;
    for (int row = first; row < last; ++row) quantise_row(in, static_cast<size_t>(row), w.columns, groups);
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
    constexpr int kRowsPerChunk = 16;
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
