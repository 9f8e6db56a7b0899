// y = x w^T (+ bias) for every weight format, one row or many, over panels of 16 weight rows.
//
// In: activations [N, K], packed weights. Out: [N, M]. For quantised weights the activations are quantised to
// int8 per row and group of 32 (inputs.cpp). Each output is summed in the same order whatever tile (tiles.h)
// computes it, so a row's result never depends on the rows beside it.
#include "kernels.h"

namespace deepfast::DF_ISA {

void multiply(const Product& job, int first, int last) {
    switch (job.w.format) {
        case Format::f32: return multiply_format<Format::f32>(job, first, last);
        case Format::bf16: return multiply_format<Format::bf16>(job, first, last);
        case Format::q8: return multiply_format<Format::q8>(job, first, last);
        case Format::q4: return multiply_format<Format::q4>(job, first, last);
        case Format::q4_min: return multiply_format<Format::q4_min>(job, first, last);
        case Format::q4_k: return multiply_format<Format::q4_k>(job, first, last);
        case Format::q4_k16: return multiply_format<Format::q4_k16>(job, first, last);
        case Format::q8_k: return multiply_format<Format::q8_k>(job, first, last);
        case Format::q8_k16: return multiply_format<Format::q8_k16>(job, first, last);
        case Format::q8_k16_min: return multiply_format<Format::q8_k16_min>(job, first, last);
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
