// The row-wise ops: RMSNorm (of a sum), SwiGLU, and storing keys and values with per-head norm and rotary positions.
//
// In: float rows, norm weights, a table of cosines and sines. Out: float rows; keys and values in the paged
// cache.
#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

// y = x / sqrt(mean(x^2) + eps) * weight; x and y may be the same.
void normalise(const float* x, const float* weight, float eps, int d, float* y) {
    Floats squares = zero();
    for (int i = 0; i < d; i += kLanes) {
        const Floats v = load_part(x + i, d - i);
        squares = fma(v, v, squares);
    }
    const Floats scale = set(1.0f / sqrtf(sum(squares) / static_cast<float>(d) + eps));
    for (int i = 0; i < d; i += kLanes)
        store_part(y + i, mul(mul(load_part(x + i, d - i), scale), load_part(weight + i, d - i)), d - i);
}

void add_rows(const float* x, const float* more, int d, float* y) {
    for (int i = 0; i < d; i += kLanes)
        store_part(y + i, add(load_part(x + i, d - i), load_part(more + i, d - i)), d - i);
}

// Rotates the pairs (x[j], x[j + C/2]) by the angle whose cosine and sine are in table [2, C / 2].
void rotate(const float* x, const float* table, int dim, float* y) {
    const int half = dim / 2;
    for (int i = 0; i < half; i += kLanes) {
        const int count = half - i;
        const Floats cosine = load_part(table + i, count), sine = load_part(table + half + i, count);
        const Floats low = load_part(x + i, count), high = load_part(x + half + i, count);
        store_part(y + i, sub(mul(low, cosine), mul(high, sine)), count);
        store_part(y + half + i, fma(high, cosine, mul(low, sine)), count);
    }
}

// Where one head's key and value go: lane or row `offset` of its page.
struct Slot {
    uint8_t* page;
    PageLayout layout;
    int offset;
};

template <class E>
void store_head(const float* key, const float* value, int dim, const Slot& slot) {
    alignas(64) E column[kMaxHeadDim];
    auto* keys = reinterpret_cast<E*>(slot.page) + slot.offset;
    auto* values = reinterpret_cast<E*>(slot.page + slot.layout.values) + slot.offset * dim;
    for (int i = 0; i < dim; i += kLanes) {
        store_part(column + i, load_part(key + i, dim - i), dim - i);
        store_part(values + i, load_part(value + i, dim - i), dim - i);
    }
    for (int i = 0; i < dim; ++i) keys[i * kLanes] = column[i];
}

// x [dim] to codes [dim] and their scale f16(max |x| / 127), which is NaN where x holds NaN or infinity.
Half quantise_head(const float* x, int dim, int8_t* codes) {
    Floats top = zero(), poison = zero();
    for (int i = 0; i < dim; i += kLanes) {
        const Floats v = load_part(x + i, dim - i);
        top = max(top, abs(v));
        poison = add(poison, mul(v, zero()));
    }
    const float wanted = maximum(top) / 127.0f;
    const Half scale = to_half((wanted < 65504.0f ? wanted : 65504.0f) + sum(poison));
    const float step = to_float(scale), divisor = step > 0.0f ? step : INFINITY;
    for (int i = 0; i < dim; i += kLanes) {
        alignas(64) int32_t whole[kLanes];
        const Floats code = div(load_part(x + i, dim - i), set(divisor));
        store(whole, round(max(min(code, set(127.0f)), set(-127.0f))));
        for (int j = 0; j < kLanes && i + j < dim; ++j) codes[i + j] = static_cast<int8_t>(whole[j]);
    }
    return scale;
}

void store_codes(const float* key, const float* value, int dim, const Slot& slot) {
    int8_t column[kMaxHeadDim];
    auto* keys = reinterpret_cast<int8_t*>(slot.page) + slot.offset * 4;
    auto* values =
        reinterpret_cast<int8_t*>(slot.page + slot.layout.values) + slot.offset * slot.layout.columns;
    auto* scales = reinterpret_cast<Half*>(slot.page + slot.layout.scales) + slot.offset;
    scales[0] = quantise_head(key, dim, column);
    scales[kLanes] = quantise_head(value, dim, values);
    for (int i = 0; i < dim; ++i) keys[i / 4 * 4 * kLanes + i % 4] = column[i];
}

struct Heads {
    int queries;          // H
    const float* q_norm;  // [C] or null
    const float* k_norm;
    float eps;
    Rope rope;
    int layer;
};

void store_row(const Heads& h, const Cache& cache, const BatchView& batch, int row, const float* qkv,
               float* q) {
    alignas(64) float head[kMaxHeadDim];
    const int dim = cache.dim, groups = cache.heads, position = batch.positions[row];
    const float* table = h.rope.table + static_cast<size_t>(position) * static_cast<size_t>(dim);
    for (int i = 0; i < h.queries; ++i) {
        const float* x = qkv + i * dim;
        if (h.q_norm) normalise(x, h.q_norm, h.eps, dim, head);
        rotate(h.q_norm ? head : x, table, dim, q + i * dim);
    }
    const size_t line = static_cast<size_t>(batch.sequence_of[row]) * static_cast<size_t>(batch.width);
    const int block = batch.block_tables[line + static_cast<size_t>(position / kLanes)];
    Slot slot{pages_of(cache, h.layer, block), page_of(cache.format, dim), position % kLanes};
    const float* k = qkv + h.queries * dim;
    const float* v = k + groups * dim;
    alignas(64) float key[kMaxHeadDim];
    for (int g = 0; g < groups; ++g, k += dim, v += dim, slot.page += slot.layout.bytes) {
        if (h.k_norm) normalise(k, h.k_norm, h.eps, dim, head);
        rotate(h.k_norm ? head : k, table, dim, key);
        if (cache.format == KVFormat::q8)
            store_codes(key, v, dim, slot);
        else if (cache.format == KVFormat::f16)
            store_head<Half>(key, v, dim, slot);
        else
            store_head<float>(key, v, dim, slot);
    }
}

// Rows per chunk so that a chunk is worth a thread's while (about 16k values).
int rows_per_chunk(size_t width) { return width >= 16384 ? 1 : static_cast<int>(16384 / (width + 1)) + 1; }

}  // namespace

void swiglu_row(const float* gate, const float* up, int f, float* y) {
    for (int i = 0; i < f; i += kLanes) {
        const Floats g = load_part(gate + i, f - i);
        const Floats silu = div(g, add(set(1.0f), exp(sub(zero(), g))));
        store_part(y + i, mul(silu, load_part(up + i, f - i)), f - i);
    }
}

void rms_norm(Pool& pool, const float* x, const float* more, const float* weight, float eps, int n, int d,
              float* total, float* y) {
    const int size = rows_per_chunk(static_cast<size_t>(d));
    pool.each(count_chunks(n, size), [&](int chunk, int) {
        const Span rows = span_of(chunk, size, n);
        for (int i = rows.first; i < rows.last; ++i) {
            const size_t at = static_cast<size_t>(i) * static_cast<size_t>(d);
            if (more) add_rows(x + at, more + at, d, total + at);
            normalise((more ? total : x) + at, weight, eps, d, y + at);
        }
    });
}

void swiglu(Pool& pool, const float* gate_up, int n, int f, float* y) {
    const int size = rows_per_chunk(2 * static_cast<size_t>(f));
    pool.each(count_chunks(n, size), [&](int chunk, int) {
        const Span rows = span_of(chunk, size, n);
        for (int i = rows.first; i < rows.last; ++i) {
            const float* gate = gate_up + static_cast<size_t>(i) * 2 * static_cast<size_t>(f);
            swiglu_row(gate, gate + f, f, y + static_cast<size_t>(i) * static_cast<size_t>(f));
        }
    });
}

void store_kv(Pool& pool, const float* qkv, int heads, const float* q_norm, const float* k_norm, float eps,
              Rope rope, const Cache& cache, int layer, const BatchView& batch, float* q) {
    const Heads h{heads, q_norm, k_norm, eps, rope, layer};
    const size_t width = static_cast<size_t>(heads + 2 * cache.heads) * static_cast<size_t>(cache.dim);
    const size_t q_width = static_cast<size_t>(heads) * static_cast<size_t>(cache.dim);
    const int size = rows_per_chunk(width);
    pool.each(count_chunks(batch.rows, size), [&](int chunk, int) {
        const Span rows = span_of(chunk, size, batch.rows);
        for (int i = rows.first; i < rows.last; ++i)
            store_row(h, cache, batch, i, qkv + static_cast<size_t>(i) * width,
                      q + static_cast<size_t>(i) * q_width);
    });
}

}  // namespace deepfast::DF_ISA
