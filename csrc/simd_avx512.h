// The 16 lanes of simd.h in one AVX-512 register, int8 dot products by VNNI. Included by simd.h alone.
//
// With DEEPFAST_EMULATE_AVX512 the same code runs on plain loops: a test build for machines without AVX-512.
#pragma once

#ifdef DEEPFAST_EMULATE_AVX512
#include "emulate_avx512.h"
#else
#include <immintrin.h>
#endif

namespace deepfast::DF_ISA {

constexpr int kTileRows = 8;        // rows of activations in registers: 32 registers
constexpr int kTilePanels = 2;      // panels of weights beside them
constexpr int kStreamPanels = 4;    // panels at once when there is one row
constexpr int kNibblePanels = 4;  // in q4
constexpr int kAttentionRows = 8;   // query rows that share a vector of keys or values: 24 of 32 registers
constexpr int kAttentionTile = 24;  // accumulators: query rows x (blocks of keys or vectors of a value)
constexpr int kAttentionChunk = 4;  // blocks of keys or values, as floats, that stay in the L1 cache
constexpr int kCodeRows = 4;        // the same for int8 keys: 16 registers of sums
constexpr int kCodeSpan = 2;

struct Floats {
    __m512 v;
};
struct Ints {
    __m512i v;
};

DF_INLINE Floats zero() { return {_mm512_setzero_ps()}; }
DF_INLINE Floats set(float x) { return {_mm512_set1_ps(x)}; }
DF_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
DF_INLINE void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
DF_INLINE Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
DF_INLINE Floats sub(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
DF_INLINE Floats mul(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
DF_INLINE Floats div(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
DF_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
DF_INLINE Floats abs(Floats a) { return {_mm512_abs_ps(a.v)}; }

DF_INLINE Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
DF_INLINE Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
DF_INLINE Floats load(const Half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
DF_INLINE void store(Half* p, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, 0));
}
DF_INLINE Floats load(const Bfloat* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

DF_INLINE Floats load(const int8_t* p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))};
}

DF_INLINE Ints round(Floats x) { return {_mm512_cvtps_epi32(x.v)}; }
DF_INLINE Floats to_float(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
DF_INLINE void store(int32_t* p, Ints x) { _mm512_storeu_si512(p, x.v); }
// The values, all in -128..127, as bytes; and their sum.
DF_INLINE void store_bytes(int8_t* p, Ints x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v));
}
DF_INLINE int32_t sum(Ints x) {
    alignas(64) int32_t a[kLanes];
    store(a, x);
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) a[i] += a[i + n];
    return a[0];
}
DF_INLINE Ints add(Ints x, Ints y) { return {_mm512_add_epi32(x.v, y.v)}; }
DF_INLINE Floats exp2i(Ints n) {  // 2^n for n in [-126, 127]
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23))};
}

// One fixed order of addition, so that a sum is the same in every tile.
DF_INLINE float sum(Floats x) {
    alignas(64) float a[kLanes];
    store(a, x);
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) a[i] += a[i + n];
    return a[0];
}
DF_INLINE float maximum(Floats x) {
    alignas(64) float a[kLanes];
    store(a, x);
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) a[i] = a[i] > a[i + n] ? a[i] : a[i + n];
    return a[0];
}

struct Nibbles {  // unsigned bytes 0..15, four per lane
    __m512i v;
};
struct Bytes {  // the codes plus 128, as unsigned bytes
    __m512i v;
};
DF_INLINE void load_nibbles(const uint8_t* p, Nibbles& low, Nibbles& high) {
    const __m512i b = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    low.v = _mm512_and_si512(b, mask);
    high.v = _mm512_and_si512(_mm512_srli_epi16(b, 4), mask);
}
DF_INLINE void store(uint8_t* p, Nibbles x) { _mm512_storeu_si512(p, x.v); }

struct Steps {  // what each lane's sum is multiplied by
    __m512i v;
};
DF_INLINE Steps load_steps(const int8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

struct NibbleDot {  // sum over a group of (code - 8) * x, or of code * x
    using Codes = Nibbles;
    static constexpr bool kStepsInside = false;  // are products multiplied by steps as they are added?
    __m512i v;
    DF_INLINE int32_t start_word(int32_t sum) { return -8 * sum; }
    DF_INLINE NibbleDot start(int32_t word) { return {_mm512_set1_epi32(word)}; }
    DF_INLINE Nibbles load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
};
struct ByteDot {
    using Codes = Bytes;
    static constexpr bool kStepsInside = false;
    __m512i v;
    DF_INLINE int32_t start_word(int32_t sum) { return -128 * sum; }
    DF_INLINE ByteDot start(int32_t word) { return {_mm512_set1_epi32(word)}; }
    DF_INLINE Bytes load(const uint8_t* p) {
        return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(-128)))};
    }
};
DF_INLINE NibbleDot dot(NibbleDot a, Nibbles w, int32_t x) {
    return {_mm512_dpbusd_epi32(a.v, w.v, _mm512_set1_epi32(x))};
}
DF_INLINE ByteDot dot(ByteDot a, Bytes w, int32_t x) {
    return {_mm512_dpbusd_epi32(a.v, w.v, _mm512_set1_epi32(x))};
}
DF_INLINE Ints finish(NibbleDot a) { return {a.v}; }
DF_INLINE Ints finish(ByteDot a) { return {a.v}; }
template <class Sum>
DF_INLINE Ints finish(Sum a, Steps steps) {  // the sums times the steps, below 2^27
    return {_mm512_mullo_epi32(a.v, steps.v)};
}

// Int8 keys, four dimensions of 16 positions, against four int16 of a query as 128 high + low: exact, for at
// most 1,024 dims. Parts of the sum may wrap around 2^32, the whole does not.
struct QueryWord {
    int8_t high[4], low[4];
};
struct KeyCodes {  // plus 128, as unsigned bytes
    __m512i v;
};
#ifdef DEEPFAST_EMULATE_AVX512
using Words = __m512i;
#else
using Words = int32_t __attribute__((vector_size(64)));  // GCC copies sums that are held as __m512i
#endif
struct KeyDot {
    Words high, low;
    DF_INLINE KeyDot zero() { return {Words{}, Words{}}; }
};
DF_INLINE QueryWord query_word(const int16_t* code) {
    QueryWord q;
    for (int i = 0; i < 4; ++i) {
        q.high[i] = static_cast<int8_t>((code[i] + 64) >> 7);
        q.low[i] = static_cast<int8_t>(code[i] - 128 * q.high[i]);
    }
    return q;
}
DF_INLINE KeyCodes load_keys(const int8_t* p) {
    return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(-128)))};
}
DF_INLINE Words dot(Words s, const KeyCodes& k, const int8_t (&q)[4]) {
    const __m512i words = _mm512_set1_epi32(bit_cast<int32_t>(q));
    return bit_cast<Words>(_mm512_dpbusd_epi32(bit_cast<__m512i>(s), k.v, words));
}
DF_INLINE KeyDot dot(KeyDot s, const KeyCodes& k, const QueryWord& q) {
    return {dot(s.high, k, q.high), dot(s.low, k, q.low)};
}
// `q_sum` is the sum of the query's codes.
DF_INLINE Ints finish(const KeyDot& s, int32_t q_sum) {
    const __m512i high = _mm512_slli_epi32(bit_cast<__m512i>(s.high), 7), low = bit_cast<__m512i>(s.low);
    const auto offset = static_cast<int32_t>(static_cast<uint32_t>(q_sum) << 7);
    return {_mm512_sub_epi32(_mm512_add_epi32(high, low), _mm512_set1_epi32(offset))};
}

}  // namespace deepfast::DF_ISA
