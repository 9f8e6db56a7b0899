// What the kernel files of one ISA share with each other: the ops of ops.h, and the pieces that MoE is put
// together from.
#pragma once

#include "layout.h"
#include "pool.h"
#include "simd.h"

namespace deepfast::DF_ISA {

PackOp pack;
PackCodesOp pack_codes;
EmbedOp embed;
LinearScratchOp linear_scratch;
LinearOp linear;
MlpScratchOp mlp_scratch;
MlpOp mlp;
MoeScratchOp moe_scratch;
MoeOp moe;
RmsNormOp rms_norm;
StoreKvOp store_kv;
AttentionScratchOp attention_scratch;
AttentionOp attention;
ProbeDotsOp probe_dots;
ProbeReadOp probe_read;

// Hands out pieces of a scratch buffer; with a null buffer it only counts.
struct Scratch {
    char* base;
    size_t used = 0;

    template <class T>
    T* take(size_t count) {
        T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += round_up(count * sizeof(T), 64);
        return piece;
    }
};

// Activations in the form that a weight format multiplies: floats, or int8 per row and group of 32. H parts of
// a group have a step of their own (ops.h).
struct Inputs {
    const float* floats;  // [N, K]
    size_t stride;        // K
    int8_t* codes;        // [N, 32 Q] in -127..127
    float* scales;        // [N, Q], NaN where the group holds NaN or infinity
    int32_t* offsets;     // [N, Q, H] what the dot products of the part start from
    float* sums;          // [N, Q, H] of the part; subtracted where minimums are; null for formats without
};

// Places (or, with a null scratch, counts) what `n` rows of inputs to `w` need.
Inputs take_inputs(Scratch& scratch, const Packed& w, const float* x, int n);
// Quantises rows [first, last) where the format of `w` asks for it.
void prepare_inputs(const Inputs& inputs, const Packed& w, int first, int last);

// y[i, m] = sum_k x[row[i], k] * w[m, k] + bias[m] for i in [0, n) and the rows m of panels [first, last).
struct Product {
    const Inputs* inputs;
    const int32_t* row;  // [n], or null for 0, 1, 2 ...
    int n;
    Packed w;
    int expert;
    const float* bias;  // [M] or null
    float* y;           // [n, M]
};
void multiply(const Product& product, int first, int last);
template <Format kFormat>  // of `product.w`
void multiply_format(const Product& product, int first, int last);

// Panels per chunk, so that `threads` get several chunks each and tiles stay whole.
int panels_per_chunk(int panels, int threads);

// y [N, F] = silu(gate) * up for gate_up [N, 2F], gate first.
void swiglu(Pool& pool, const float* gate_up, int n, int f, float* y);
void swiglu_row(const float* gate, const float* up, int f, float* y);

}  // namespace deepfast::DF_ISA
