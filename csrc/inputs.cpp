// Activations as the grouped weight formats multiply them: int8 per row and group of 32, with the sums that
// undo offsets and carry minimums.
//
// In: float rows [N, K]. Out: Inputs (kernels.h). Knows no weights, only their format.
#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

// What the dot products of a part start from, by the sum of its inputs. Codes of 4 bits with minimums count
// from 0.
int32_t offset_of(Format format, int32_t sum) {
    if (!has_nibbles(format)) return ByteDot::start_word(sum);
    return has_minimums(format) ? 0 : NibbleDot::start_word(sum);
}

// 32 inputs `a`, `b` become group `at` of `in`.
void quantise_group(const Inputs& in, Format format, size_t at, Floats a, Floats b) {
    const float top = maximum(max(abs(a), abs(b)));
    const float poison = sum(add(mul(a, zero()), mul(b, zero())));  // 0, or NaN
    const float inverse = top > 1e-30f ? 127.0f / top : 0.0f;
    const Floats least = set(-127.0f);  // also what NaN becomes: its code may be anything, not overflow
    const Ints low = round(max(mul(a, set(inverse)), least));
    const Ints high = round(max(mul(b, set(inverse)), least));
    store_bytes(in.codes + at * kGroup, low);
    store_bytes(in.codes + at * kGroup + kLanes, high);
    const float scale = (top > 1e-30f ? top / 127.0f : 0.0f) + poison;
    in.scales[at] = scale;
    const int parts = parts_of(format);
    int32_t sums[2] = {sum(low), sum(high)};
    if (parts == 1) sums[0] += sums[1];
    for (int h = 0; h < parts; ++h) {
        const size_t part = at * static_cast<size_t>(parts) + static_cast<size_t>(h);
        in.offsets[part] = offset_of(format, sums[h]);
        if (in.sums) in.sums[part] = (has_steps(format) ? -scale : scale) * static_cast<float>(sums[h]);
    }
}

}  // namespace

Inputs take_inputs(Scratch& scratch, const Packed& w, const float* x, int n) {
    Inputs in{x, static_cast<size_t>(w.columns), nullptr, nullptr, nullptr, nullptr};
    if (!is_grouped(w.format)) return in;
    const size_t groups = static_cast<size_t>(n) * static_cast<size_t>((w.columns + kGroup - 1) / kGroup);
    const size_t parts = groups * static_cast<size_t>(parts_of(w.format));
    in.codes = scratch.take<int8_t>(groups * kGroup);
    in.scales = scratch.take<float>(groups);
    in.offsets = scratch.take<int32_t>(parts);
    if (has_minimums(w.format)) in.sums = scratch.take<float>(parts);
    return in;
}

void prepare_inputs(const Inputs& in, const Packed& w, int first, int last) {
    if (!is_grouped(w.format)) return;
    const int groups = (w.columns + kGroup - 1) / kGroup;
    for (int row = first; row < last; ++row) {
        const float* x = in.floats + static_cast<size_t>(row) * in.stride;
        for (int g = 0; g < groups; ++g) {
            const int count = w.columns - g * kGroup;
            const Floats a = load_part(x + g * kGroup, count);
            const Floats b = count > kLanes ? load_part(x + g * kGroup + kLanes, count - kLanes) : zero();
            quantise_group(in, w.format,
                           static_cast<size_t>(row) * static_cast<size_t>(groups) + static_cast<size_t>(g), a,
                           b);
        }
    }
}

}  // namespace deepfast::DF_ISA
