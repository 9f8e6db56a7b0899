// What the dot products of quantised weights are multiplied by, group after group of P panels: straight from
// the packed matrix, or from a block in which many rows find it again.
//
// In: a packed matrix. Out: scales, steps and minimums of 16 rows as the tiles (tiles.h) take them.
#pragma once

#include <type_traits>

#include "kernels.h"

namespace deepfast::DF_ISA {

// The packed matrix that a tile reads.
struct Matrix {
    const uint8_t* data;  // codes or values of panel 0
    const int8_t* steps;
    const int8_t* lows;
    const Half* scales;
    const Half* minimums;
    size_t panel;   // bytes of a panel's codes or values
    size_t groups;  // Q
    size_t spans;   // S
    size_t span;    // groups that share a scale
    int columns;    // K
};

template <Format kFormat>
using DotOf = std::conditional_t<has_nibbles(kFormat), NibbleDot, ByteDot>;

// Are products multiplied by steps as integers? Where a group has one step only, it is part of the scale.
constexpr bool has_part_steps(Format f) { return has_steps(f) && parts_of(f) > 1; }

// Of panels p, p + 1 .. from group `first` on.
template <Format kFormat>
class PackedScales {
  public:
    DF_INLINE_MEMBER PackedScales(const Matrix& m, size_t p, size_t first)
        : m_(m), panel_(p), group_(first), span_(first / m.span), end_((span_ + 1) * m.span) {}

    // Group g is next: the one after the last, or `first`.
    DF_INLINE_MEMBER void reach(size_t g) {
        group_ = g;
        if constexpr (!has_steps(kFormat)) {
            span_ = g;
        } else if (g == end_) {
            ++span_;
            end_ += m_.span;
        }
    }
    DF_INLINE_MEMBER Floats scale(int c) const {
        const Floats scale = load(m_.scales + scale_at(c));
        if constexpr (!has_steps(kFormat) || has_part_steps(kFormat)) return scale;
        return mul(scale, load(m_.steps + part_at(c, 0)));  // exactly: 11 and 8 bits
    }
    DF_INLINE_MEMBER Steps steps(int c, int h) const { return load_steps(m_.steps + part_at(c, h)); }
    // What the sum of the inputs of part h is multiplied by.
    DF_INLINE_MEMBER Floats minimum(int c, int h) const {
        const Floats minimum = load(m_.minimums + scale_at(c));
        return has_steps(kFormat) ? mul(minimum, load(m_.lows + part_at(c, h))) : minimum;
    }

  private:
    DF_INLINE_MEMBER size_t scale_at(int c) const {
        return ((panel_ + static_cast<size_t>(c)) * m_.spans + span_) * kLanes;
    }
    DF_INLINE_MEMBER size_t part_at(int c, int h) const {
        constexpr size_t kParts = parts_of(kFormat);
        return (((panel_ + static_cast<size_t>(c)) * m_.groups + group_) * kParts + static_cast<size_t>(h)) *
               kLanes;
    }

    const Matrix& m_;
    size_t panel_, group_, span_, end_;
};

// Of G groups of P panels, converted once.
template <Format kFormat, int P, int G>
struct BlockScales {
    static constexpr int kParts = parts_of(kFormat);

    alignas(64) float scales[G][P][kLanes];
    alignas(64) float minimums[has_minimums(kFormat) ? G : 1][P][kParts][kLanes];
    Steps steps[has_part_steps(kFormat) ? G : 1][P][kParts];

    // Groups [first, last) of panels p, p + 1 ..
    void fill(const Matrix& m, size_t p, size_t first, size_t last) {
        PackedScales<kFormat> packed(m, p, first);
        for (size_t g = first; g < last; ++g) {
            packed.reach(g);
            for (int c = 0; c < P; ++c) {
                store(scales[g - first][c], packed.scale(c));
                for (int h = 0; h < kParts; ++h) {
                    if constexpr (has_part_steps(kFormat)) steps[g - first][c][h] = packed.steps(c, h);
                    if constexpr (has_minimums(kFormat))
                        store(minimums[g - first][c][h], packed.minimum(c, h));
                }
            }
        }
    }
};

// The same read again, from group `first` on.
template <Format kFormat, int P, int G>
class BlockReader {
  public:
    using Block = BlockScales<kFormat, P, G>;

    DF_INLINE_MEMBER BlockReader(const Block& block, size_t first) : block_(block), first_(first), at_(0) {}
    DF_INLINE_MEMBER void reach(size_t g) { at_ = g - first_; }
    DF_INLINE_MEMBER Floats scale(int c) const { return load(block_.scales[at_][c]); }
    DF_INLINE_MEMBER Steps steps(int c, int h) const { return block_.steps[at_][c][h]; }
    DF_INLINE_MEMBER Floats minimum(int c, int h) const { return load(block_.minimums[at_][c][h]); }

  private:
    const Block& block_;
    size_t first_, at_;
};

}  // namespace deepfast::DF_ISA
