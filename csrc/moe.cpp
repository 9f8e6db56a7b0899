// Mixture of experts: softmax and top-k of the router, tokens grouped by expert, the experts' matrices, and
// the sum.
//
// In: rows [N, D], router logits [N, E], packed experts. Out: [N, D]. One pass over all experts per stage,
// cut into chunks of (expert, panels), so that a few large and many small experts load the threads alike.
#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

// A pair is one (token, chosen expert); pairs are sorted by expert, then token.
struct Work {
    float* shares;      // [N, E]
    int32_t* chosen;    // [N, top_k] expert ids by descending share
    float* weights;     // [N, top_k]
    int32_t* place;     // [N, top_k] where the pair was sorted to
    int32_t* token_of;  // [N top_k] row of x of each sorted pair
    int32_t* offsets;   // [E + 1] pairs of expert e are offsets[e]:offsets[e+1]
    int32_t* active;    // [E] experts with pairs
    float* hidden;      // [N top_k, 2F]
    float* inner;       // [N top_k, F]
    float* outer;       // [N top_k, D]
    Inputs inputs;      // x for gate_up
    Inputs inner_inputs;
};

Work take_work(Scratch& s, const float* x, const Packed& gate_up, const Packed& down, int n, int top_k) {
    const auto tokens = static_cast<size_t>(n), experts = static_cast<size_t>(gate_up.experts);
    const size_t pairs = tokens * static_cast<size_t>(top_k);
    Work w{};
    w.shares = s.take<float>(tokens * experts);
    w.chosen = s.take<int32_t>(pairs);
    w.weights = s.take<float>(pairs);
    w.place = s.take<int32_t>(pairs);
    w.token_of = s.take<int32_t>(pairs);
    w.offsets = s.take<int32_t>(experts + 1);
    w.active = s.take<int32_t>(experts);
    w.hidden = s.take<float>(pairs * static_cast<size_t>(gate_up.rows));
    w.inner = s.take<float>(pairs * static_cast<size_t>(down.columns));
    w.outer = s.take<float>(pairs * static_cast<size_t>(down.rows));
    w.inputs = take_inputs(s, gate_up, x, n);
    w.inner_inputs = take_inputs(s, down, w.inner, static_cast<int>(pairs));
    return w;
}

void softmax(const float* logits, int count, float* shares) {
    float top = logits[0];
    for (int i = 1; i < count; ++i) top = logits[i] > top ? logits[i] : top;
    float total = 0.0f;
    for (int i = 0; i < count; i += kLanes) {
        const Floats e = exp(sub(load_part(logits + i, count - i), set(top)));
        store_part(shares + i, e, count - i);
        total += sum(load_part(shares + i, count - i));
    }
    for (int i = 0; i < count; ++i) shares[i] /= total;
}

// The top_k largest shares, the lower id on a tie; NaN shares are still given ids, so that they reach the
// output.
void choose(const float* shares, int experts, int top_k, bool normalise, int32_t* chosen, float* weights) {
    float total = 0.0f;
    for (int slot = 0; slot < top_k; ++slot) {
        int best = -1;
        for (int e = 0; e < experts; ++e) {
            bool taken = false;
            for (int i = 0; i < slot; ++i) taken = taken || chosen[i] == e;
            if (!taken && (best < 0 || shares[e] > shares[best])) best = e;
        }
        chosen[slot] = best;
        weights[slot] = shares[best];
        total += shares[best];
    }
    if (normalise)
        for (int slot = 0; slot < top_k; ++slot) weights[slot] /= total;
}

// Counting sort of the pairs by expert; returns how many experts have any.
int group_pairs(const Work& w, int n, int top_k, int experts) {
    const int pairs = n * top_k;
    memset(w.offsets, 0, static_cast<size_t>(experts + 1) * sizeof(int32_t));
    for (int i = 0; i < pairs; ++i) ++w.offsets[w.chosen[i] + 1];
    int active = 0;
    for (int e = 0; e < experts; ++e) {
        if (w.offsets[e + 1] > 0) w.active[active++] = e;
        w.offsets[e + 1] += w.offsets[e];
    }
    for (int i = 0; i < pairs; ++i) {
        const int at = w.offsets[w.chosen[i]]++;
        w.place[i] = at;
        w.token_of[at] = i / top_k;
    }
    for (int e = experts; e > 0; --e) w.offsets[e] = w.offsets[e - 1];
    w.offsets[0] = 0;
    return active;
}

// One matrix of every active expert over its pairs: y [pairs, M]; `gather` says which input row a pair reads.
void run_experts(Pool& pool, const Work& w, int active, const Packed& matrix, const Inputs& inputs,
                 bool gather, const int32_t* identity, float* y) {
    const int panels = (matrix.rows + kLanes - 1) / kLanes;
    const int size = panels_per_chunk(panels, pool.threads());
    const int chunks = count_chunks(panels, size);
    pool.each(active * chunks, [&](int item, int) {
        const int expert = w.active[item / chunks], first = w.offsets[expert];
        const Span span = span_of(item % chunks, size, panels);
        const int32_t* row = (gather ? w.token_of : identity) + first;
        const Product job{&inputs,
                          row,
                          w.offsets[expert + 1] - first,
                          matrix,
                          expert,
                          nullptr,
                          y + static_cast<size_t>(first) * static_cast<size_t>(matrix.rows)};
        multiply(job, span.first, span.last);
    });
}

// y[n] = sum over slots of weight * outer[place]
void combine(const Work& w, int token, int top_k, int d, float* y) {
    memset(y, 0, static_cast<size_t>(d) * sizeof(float));
    for (int slot = 0; slot < top_k; ++slot) {
        const size_t pair =
            static_cast<size_t>(token) * static_cast<size_t>(top_k) + static_cast<size_t>(slot);
        const float* row = w.outer + static_cast<size_t>(w.place[pair]) * static_cast<size_t>(d);
        const Floats weight = set(w.weights[pair]);
        for (int i = 0; i < d; i += kLanes)
            store_part(y + i, fma(load_part(row + i, d - i), weight, load_part(y + i, d - i)), d - i);
    }
}

}  // namespace

size_t moe_scratch(const Packed& gate_up, const Packed& down, int n, int top_k) {
    Scratch count{nullptr};
    take_work(count, nullptr, gate_up, down, n, top_k);
    count.take<int32_t>(static_cast<size_t>(n) * static_cast<size_t>(top_k));
    return count.used;
}

void moe(Pool& pool, const float* x, const float* router, int n, const Packed& gate_up, const Packed& down,
         int top_k, bool normalise, float* y, void* scratch) {
    Scratch memory{static_cast<char*>(scratch)};
    const Work w = take_work(memory, x, gate_up, down, n, top_k);
    const int experts = gate_up.experts, pairs = n * top_k, f = down.columns;
    auto* identity = memory.take<int32_t>(static_cast<size_t>(pairs));
    constexpr int kRows = 8;
    pool.each(count_chunks(n, kRows), [&](int chunk, int) {
        const Span rows = span_of(chunk, kRows, n);
        prepare_inputs(w.inputs, gate_up, rows.first, rows.last);
        for (int i = rows.first; i < rows.last; ++i) {
            const auto at = static_cast<size_t>(i);
            float* shares = w.shares + at * static_cast<size_t>(experts);
            softmax(router + at * static_cast<size_t>(experts), experts, shares);
            choose(shares, experts, top_k, normalise, w.chosen + at * static_cast<size_t>(top_k),
                   w.weights + at * static_cast<size_t>(top_k));
        }
    });
    const int active = group_pairs(w, n, top_k, experts);
    run_experts(pool, w, active, gate_up, w.inputs, true, nullptr, w.hidden);
    pool.each(count_chunks(pairs, kRows), [&](int chunk, int) {
        const Span rows = span_of(chunk, kRows, pairs);
        for (int i = rows.first; i < rows.last; ++i) {
            const float* gate = w.hidden + static_cast<size_t>(i) * 2 * static_cast<size_t>(f);
            swiglu_row(gate, gate + f, f, w.inner + static_cast<size_t>(i) * static_cast<size_t>(f));
            identity[i] = i;
        }
        prepare_inputs(w.inner_inputs, down, rows.first, rows.last);
    });
    run_experts(pool, w, active, down, w.inner_inputs, false, identity, w.outer);
    pool.each(count_chunks(n, kRows), [&](int chunk, int) {
        const Span rows = span_of(chunk, kRows, n);
        for (int i = rows.first; i < rows.last; ++i)
            combine(w, i, top_k, down.rows, y + static_cast<size_t>(i) * static_cast<size_t>(down.rows));
    });
}

}  // namespace deepfast::DF_ISA
