// The AVX-512 intrinsics that simd_avx512.h uses, as plain loops after the manual: a test build for other
// machines.
//
// Included instead of <immintrin.h> when DEEPFAST_EMULATE_AVX512 is set; never shipped, never fast. So the
// very code of the AVX-512 path (its tiles, its int8 dot products and their corrections) runs and is tested
// where no such CPU is.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace deepfast::DF_ISA {

struct __m512 {
    float v[16];
};
struct __m512i {
    uint32_t v[16];
};
struct __m256i {
    uint16_t v[16];
};
struct __m128i {
    int8_t v[16];
};

template <class To, class F>
DF_INLINE To emulate(const F& f) {
    To y;
    for (int i = 0; i < 16; ++i) y.v[i] = f(i);
    return y;
}

DF_INLINE __m512 _mm512_set1_ps(float x) {
    return emulate<__m512>([&](int) { return x; });
}
DF_INLINE __m512 _mm512_setzero_ps() { return _mm512_set1_ps(0.0f); }
DF_INLINE __m512 _mm512_loadu_ps(const void* p) {
    __m512 y;
    memcpy(&y, p, sizeof y);
    return y;
}
DF_INLINE void _mm512_storeu_ps(void* p, __m512 x) { memcpy(p, &x, sizeof x); }
DF_INLINE __m512 _mm512_add_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.v[i] + b.v[i]; });
}
DF_INLINE __m512 _mm512_sub_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.v[i] - b.v[i]; });
}
DF_INLINE __m512 _mm512_mul_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.v[i] * b.v[i]; });
}
DF_INLINE __m512 _mm512_div_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.v[i] / b.v[i]; });
}
DF_INLINE __m512 _mm512_abs_ps(__m512 a) {
    return emulate<__m512>([&](int i) { return fabsf(a.v[i]); });
}
DF_INLINE __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return emulate<__m512>([&](int i) { return fmaf(a.v[i], b.v[i], c.v[i]); });
}
DF_INLINE __m512 _mm512_max_ps(__m512 a, __m512 b) {  // b when either is NaN
    return emulate<__m512>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
DF_INLINE __m512 _mm512_min_ps(__m512 a, __m512 b) {
    return emulate<__m512>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}

DF_INLINE __m256i _mm256_loadu_si256(const __m256i* p) {
    __m256i y;
    memcpy(&y, p, sizeof y);
    return y;
}
DF_INLINE void _mm256_storeu_si256(__m256i* p, __m256i x) { memcpy(p, &x, sizeof x); }
DF_INLINE __m512 _mm512_cvtph_ps(__m256i x) {
    return emulate<__m512>([&](int i) { return to_float(Half{x.v[i]}); });
}
DF_INLINE __m256i _mm512_cvtps_ph(__m512 x, int /*nearest*/) {
    return emulate<__m256i>([&](int i) { return to_half(x.v[i]).bits; });
}
DF_INLINE __m512i _mm512_cvtepu16_epi32(__m256i x) {
    return emulate<__m512i>([&](int i) { return uint32_t{x.v[i]}; });
}

DF_INLINE __m128i _mm_loadu_si128(const __m128i* p) {
    __m128i y;
    memcpy(&y, p, sizeof y);
    return y;
}
DF_INLINE __m512i _mm512_cvtepi8_epi32(__m128i x) {
    return emulate<__m512i>([&](int i) { return static_cast<uint32_t>(int32_t{x.v[i]}); });
}

DF_INLINE __m512i _mm512_set1_epi32(int32_t x) {
    return emulate<__m512i>([&](int) { return static_cast<uint32_t>(x); });
}
DF_INLINE __m512i _mm512_set1_epi8(char x) {
    return _mm512_set1_epi32(static_cast<int32_t>(0x01010101u * static_cast<uint8_t>(x)));
}
DF_INLINE __m512i _mm512_setzero_si512() { return _mm512_set1_epi32(0); }
DF_INLINE __m512i _mm512_loadu_si512(const void* p) {
    __m512i y;
    memcpy(&y, p, sizeof y);
    return y;
}
DF_INLINE void _mm512_storeu_si512(void* p, __m512i x) { memcpy(p, &x, sizeof x); }
DF_INLINE __m512 _mm512_castsi512_ps(__m512i x) { return bit_cast<__m512>(x); }
DF_INLINE __m512i _mm512_and_si512(__m512i a, __m512i b) {
    return emulate<__m512i>([&](int i) { return a.v[i] & b.v[i]; });
}
DF_INLINE __m512i _mm512_xor_si512(__m512i a, __m512i b) {
    return emulate<__m512i>([&](int i) { return a.v[i] ^ b.v[i]; });
}
DF_INLINE __m512i _mm512_add_epi32(__m512i a, __m512i b) {
    return emulate<__m512i>([&](int i) { return a.v[i] + b.v[i]; });
}
DF_INLINE __m512i _mm512_sub_epi32(__m512i a, __m512i b) {
    return emulate<__m512i>([&](int i) { return a.v[i] - b.v[i]; });
}
DF_INLINE __m512i _mm512_slli_epi32(__m512i a, unsigned n) {
    return emulate<__m512i>([&](int i) { return a.v[i] << n; });
}
DF_INLINE __m512i _mm512_srli_epi16(__m512i a, unsigned n) {
    return emulate<__m512i>([&](int i) { return (a.v[i] >> 16 >> n << 16) | ((a.v[i] & 0xffff) >> n); });
}
DF_INLINE __m512i _mm512_mullo_epi32(__m512i a, __m512i b) {
    return emulate<__m512i>([&](int i) { return a.v[i] * b.v[i]; });
}
DF_INLINE __m512 _mm512_cvtepi32_ps(__m512i x) {
    return emulate<__m512>([&](int i) { return static_cast<float>(static_cast<int32_t>(x.v[i])); });
}
DF_INLINE __m512i _mm512_cvtps_epi32(__m512 x) {  // nearest, ties to even; 0x80000000 for what does not fit
    return emulate<__m512i>([&](int i) {
        const bool fits = fabsf(x.v[i]) < 2147483648.0f;
        return fits ? static_cast<uint32_t>(static_cast<int32_t>(rintf(x.v[i]))) : 0x80000000u;
    });
}
DF_INLINE __m128i _mm512_cvtepi32_epi8(__m512i x) {
    return emulate<__m128i>([&](int i) { return static_cast<int8_t>(static_cast<uint8_t>(x.v[i])); });
}
DF_INLINE void _mm_storeu_si128(__m128i* p, __m128i x) { memcpy(p, &x, sizeof x); }
DF_INLINE __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a,
                                      __m512i b) {  // unsigned bytes of a, signed of b
    return emulate<__m512i>([&](int i) {
        int32_t s = 0;
        for (int j = 0; j < 32; j += 8)
            s += static_cast<uint8_t>(a.v[i] >> j) * static_cast<int8_t>(static_cast<uint8_t>(b.v[i] >> j));
        return sum.v[i] + static_cast<uint32_t>(s);
    });
}

}  // namespace deepfast::DF_ISA
