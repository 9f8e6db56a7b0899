// The dense MLP, down(silu(gate x) * up x), in one call: between its steps there is nothing for Python to do.
//
// In: activations [N, D], gate and up packed one above the other, down. Out: [N, D]. Each step is an op of its
// own file. Knows nothing about experts (moe.cpp).
#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

struct Inner {
    float* gate_up;  // [N, 2F]
    float* product;  // [N, F]
    void* linear;    // scratch of the two products with weights
};

Inner take_inner(Scratch& scratch, const Packed& gate_up, const Packed& down, int n) {
    const auto rows = static_cast<size_t>(n);
    Inner inner{};
    inner.gate_up = scratch.take<float>(rows * static_cast<size_t>(gate_up.rows));
    inner.product = scratch.take<float>(rows * static_cast<size_t>(down.columns));
    const size_t first = linear_scratch(gate_up, n), second = linear_scratch(down, n);
    inner.linear = scratch.take<char>(first > second ? first : second);
    return inner;
}

}  // namespace

size_t mlp_scratch(const Packed& gate_up, const Packed& down, int n) {
    Scratch count{nullptr};
    take_inner(count, gate_up, down, n);
    return count.used;
}

void mlp(Pool& pool, const float* x, int n, const Packed& gate_up, const float* gate_up_bias,
         const Packed& down, const float* down_bias, float* y, void* scratch) {
    Scratch memory{static_cast<char*>(scratch)};
    const Inner inner = take_inner(memory, gate_up, down, n);
    linear(pool, x, n, gate_up, gate_up_bias, inner.gate_up, inner.linear);
    swiglu(pool, inner.gate_up, n, down.columns, inner.product);
    linear(pool, inner.product, n, down, down_bias, y, inner.linear);
}

}  // namespace deepfast::DF_ISA
