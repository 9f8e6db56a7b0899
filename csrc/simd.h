// Sixteen lanes, whatever the machine: Floats and Ints are one zmm, two ymm or a plain array.
//
// A kernel file is compiled once per ISA into namespace deepfast::DF_ISA and written only over the names
// below. Each ISA header provides: Floats (zero set load store add sub mul div fma max min abs sum maximum,
// half and bfloat loads and stores), Ints (round, to_float, exp2i, load/store), and the int8 dot products
// over groups of 32 weights (NibbleDot, ByteDot). max(a, b) and min(a, b) give b when either is NaN. Standard
// headers with inline code stay out, so that no function compiled for a newer CPU can replace a common one at
// link time.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "ops.h"

#ifndef DF_ISA
#error "compile kernel files with -DDF_ISA=avx512|avx2|scalar (see CMakeLists.txt)"
#endif

#if defined(DEEPFAST_EMULATE_AVX512) || defined(DEEPFAST_SANITIZE)  // small code for test builds
#define DF_INLINE static inline
#define DF_INLINE_MEMBER inline
#define DF_UNROLL
#else
#define DF_INLINE static inline __attribute__((always_inline))
#define DF_INLINE_MEMBER inline __attribute__((always_inline))
#if defined(__clang__)
#define DF_UNROLL _Pragma("unroll")
#else
#define DF_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

namespace deepfast::DF_ISA {

struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};

template <class To, class From>
DF_INLINE To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

DF_INLINE float to_float(Bfloat b) { return bit_cast<float>(uint32_t{b.bits} << 16); }

DF_INLINE Bfloat to_bfloat(float f) {  // nearest, ties to even; NaN stays NaN
    const uint32_t x = bit_cast<uint32_t>(f);
    if ((x & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>((x >> 16) | 0x40)};
    return {static_cast<uint16_t>((x + 0x7fff + ((x >> 16) & 1)) >> 16)};
}

DF_INLINE float to_float(Half h) {
    const uint32_t sign = (uint32_t{h.bits} & 0x8000) << 16;
    const uint32_t m = h.bits & 0x7fff;
    uint32_t bits = (m << 13) + (m >= 0x7c00 ? 0x70000000u : 0x38000000u);
    if (m < 0x0400) bits = bit_cast<uint32_t>(static_cast<float>(m) * 0x1p-24f);
    return bit_cast<float>(sign | bits);
}

DF_INLINE Half to_half(float f) {  // nearest, ties to even; beyond 65504 infinity; NaN stays NaN
    uint32_t x = bit_cast<uint32_t>(f);
    const uint32_t sign = (x >> 16) & 0x8000;
    x &= 0x7fffffff;
    uint32_t bits;
    if (x >= 0x477ff000) {
        bits = x > 0x7f800000 ? 0x7e00 : 0x7c00;
    } else if (x < 0x38800000) {
        bits = bit_cast<uint32_t>(bit_cast<float>(x) + 0.5f) - 0x3f000000;
    } else {
        bits = (x + 0xc8000fff + ((x >> 13) & 1)) >> 13;
    }
    return {static_cast<uint16_t>(sign | bits)};
}

}  // namespace deepfast::DF_ISA

#if defined(DF_USE_AVX512)
#include "simd_avx512.h"
#elif defined(DF_USE_AVX2)
#include "simd_avx2.h"
#else
#include "simd_scalar.h"
#endif

namespace deepfast::DF_ISA {

// Asks for a cache line that is read soon; any address will do.
DF_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

// Four int8 of one row, broadcast to all lanes by the dot products.
DF_INLINE int32_t load_word(const int8_t* p) {
    int32_t word;
    memcpy(&word, p, 4);
    return word;
}

// The first `count` (1..16) values; the other lanes are zero.
template <class E>
DF_INLINE Floats load_part(const E* p, int count) {
    if (count >= kLanes) return load(p);
    alignas(64) E whole[kLanes] = {};
    memcpy(whole, p, static_cast<size_t>(count) * sizeof(E));
    return load(whole);
}

template <class E>
DF_INLINE void store_part(E* p, Floats x, int count) {
    if (count >= kLanes) return store(p, x);
    alignas(64) E whole[kLanes];
    store(whole, x);
    memcpy(p, whole, static_cast<size_t>(count) * sizeof(E));
}

// e^x to about 1e-7 relative, for x clamped to [-87.3, 88.3]; NaN stays NaN.
DF_INLINE Floats exp(Floats x) {
    x = max(set(-87.3f), min(set(88.3f), x));
    const Ints n = round(mul(x, set(1.44269504f)));
    const Floats whole = to_float(n);
    const Floats f = fma(whole, set(2.12194440e-4f), fma(whole, set(-0.693359375f), x));
    Floats p = fma(set(1.9875691500e-4f), f, set(1.3981999507e-3f));
    p = fma(p, f, set(8.3334519073e-3f));
    p = fma(p, f, set(4.1665795894e-2f));
    p = fma(p, f, set(1.6666665459e-1f));
    p = fma(p, f, set(5.0000001201e-1f));
    p = add(fma(mul(f, f), p, f), set(1.0f));
    return mul(p, exp2i(n));
}

}  // namespace deepfast::DF_ISA
