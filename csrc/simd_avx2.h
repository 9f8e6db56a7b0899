// The 16 lanes of simd.h in two AVX2 registers, int8 dot products by multiply-add of bytes. Included by
// simd.h alone.
#pragma once

#include <immintrin.h>

namespace deepfast::DF_ISA {

constexpr int kTileRows = 4;  // rows of activations in registers: 16 registers
constexpr int kTilePanels = 1;
constexpr int kStreamPanels = 2;  // panels at once when there is one row
constexpr int kNibblePanels = 1;  // in q4: one stream from end to end
constexpr int kAttentionRows = 6;   // query rows that share a vector of keys or values: 12 of 16 registers
constexpr int kAttentionTile = 6;   // accumulators: query rows x (blocks of keys or vectors of a value)
constexpr int kAttentionChunk = 2;  // blocks of keys or values, as floats, that stay in the L1 cache
constexpr int kCodeRows = 2;        // the same for int8 keys: 8 registers of sums, 4 of keys
constexpr int kCodeSpan = 1;

struct Floats {
    __m256 a, b;
};
struct Ints {
    __m256i a, b;
};

DF_INLINE Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
DF_INLINE Floats set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
DF_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
DF_INLINE void store(float* p, Floats x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
DF_INLINE Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
DF_INLINE Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
DF_INLINE Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
DF_INLINE Floats div(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
DF_INLINE Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
DF_INLINE Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
DF_INLINE Floats fma(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
DF_INLINE Floats abs(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}

DF_INLINE Floats load(const Half* p) {
    const auto* bits = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(bits)), _mm256_cvtph_ps(_mm_loadu_si128(bits + 1))};
}
DF_INLINE void store(Half* p, Floats x) {
    auto* bits = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(bits, _mm256_cvtps_ph(x.a, 0));
    _mm_storeu_si128(bits + 1, _mm256_cvtps_ph(x.b, 0));
}
DF_INLINE __m256 widen_bfloat(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
DF_INLINE Floats load(const Bfloat* p) {
    const auto* bits = reinterpret_cast<const __m128i*>(p);
    return {widen_bfloat(_mm_loadu_si128(bits)), widen_bfloat(_mm_loadu_si128(bits + 1))};
}

DF_INLINE __m256 widen_bytes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
DF_INLINE Floats load(const int8_t* p) { return {widen_bytes(p), widen_bytes(p + 8)}; }

DF_INLINE Ints round(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
DF_INLINE Floats to_float(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
DF_INLINE void store(int32_t* p, Ints x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
// The values, all in -128..127, as bytes; and their sum.
DF_INLINE void store_bytes(int8_t* p, Ints x) {
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
DF_INLINE int32_t sum(Ints x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
DF_INLINE Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
DF_INLINE __m256 exp2i(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
DF_INLINE Floats exp2i(Ints n) { return {exp2i(n.a), exp2i(n.b)}; }  // 2^n for n in [-126, 127]

// One fixed order of addition, so that a sum is the same in every tile.
DF_INLINE float sum(Floats x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
DF_INLINE float maximum(Floats x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

struct Nibbles {  // unsigned bytes 0..15, four per lane
    __m256i a, b;
};
struct Bytes {  // signed codes, and their magnitudes as unsigned bytes
    __m256i a, b, size_a, size_b;
};
DF_INLINE void load_nibbles(const uint8_t* p, Nibbles& low, Nibbles& high) {
    const auto* codes = reinterpret_cast<const __m256i*>(p);
    const __m256i a = _mm256_loadu_si256(codes), b = _mm256_loadu_si256(codes + 1),
                  mask = _mm256_set1_epi8(15);
    low = {_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)};
    high = {_mm256_and_si256(_mm256_srli_epi16(a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(b, 4), mask)};
}
DF_INLINE void store(uint8_t* p, Nibbles x) {
    auto* codes = reinterpret_cast<__m256i*>(p);
    _mm256_store_si256(codes, x.a);
    _mm256_store_si256(codes + 1, x.b);
}

struct Steps {  // what the sums of each lane are multiplied by: int16, twice
    __m256i a, b;
};
DF_INLINE Steps load_steps(const int8_t* p) {
    const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i spread = _mm256_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3,  //
                                            -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7);
    const __m256i more = _mm256_add_epi8(spread, _mm256_set1_epi16(0x800));  // bytes 8..15
    return {_mm256_srai_epi16(_mm256_shuffle_epi8(all, spread), 8),
            _mm256_srai_epi16(_mm256_shuffle_epi8(all, more), 8)};
}

// Sums of 16 bits. A group gives each at most 8 words x 2 products of 15 * 127 = 30,480; less half of the
// 8 x sum that they start from it is no more, so nothing is lost before finish().
struct NibbleDot {
    using Codes = Nibbles;
    static constexpr bool kStepsInside = false;  // are products multiplied by steps as they are added?
    __m256i a, b;
    DF_INLINE int32_t start_word(int32_t sum) {  // so that codes count from 8
        return static_cast<int32_t>(0x10001u * (static_cast<uint32_t>(-4 * sum) & 0xffff));
    }
    DF_INLINE NibbleDot start(int32_t word) { return {_mm256_set1_epi32(word), _mm256_set1_epi32(word)}; }
    DF_INLINE Nibbles load(const uint8_t* p) {
        const auto* codes = reinterpret_cast<const __m256i*>(p);
        return {_mm256_load_si256(codes), _mm256_load_si256(codes + 1)};
    }
};
// Two products of 128 * 127 are 32,512: the 16-bit sum cannot saturate, because x is never -128.
struct ByteDot {
    using Codes = Bytes;
    static constexpr bool kStepsInside = true;
    __m256i a, b;
    DF_INLINE int32_t start_word(int32_t /*sum*/) { return 0; }
    DF_INLINE ByteDot start(int32_t word) { return {_mm256_set1_epi32(word), _mm256_set1_epi32(word)}; }
    DF_INLINE Bytes load(const uint8_t* p) {
        const auto* codes = reinterpret_cast<const __m256i*>(p);
        const __m256i a = _mm256_loadu_si256(codes), b = _mm256_loadu_si256(codes + 1);
        return {a, b, _mm256_abs_epi8(a), _mm256_abs_epi8(b)};
    }
};
// A sum that stays in its register: left alone, the compiler computes all products of a tile, spills them and
// adds them up at the end, at half the speed.
DF_INLINE __m256i pinned(__m256i sum) {
    asm("" : "+x"(sum));
    return sum;
}
DF_INLINE NibbleDot dot(NibbleDot s, Nibbles w, int32_t x) {
    const __m256i words = _mm256_set1_epi32(x);
    return {pinned(_mm256_add_epi16(s.a, _mm256_maddubs_epi16(w.a, words))),
            pinned(_mm256_add_epi16(s.b, _mm256_maddubs_epi16(w.b, words)))};
}
// `steps`: of 16 bits, so that nothing is lost: 2 x 2 x 128 x 127 by 128, 8 times in a group.
DF_INLINE __m256i multiply_bytes(__m256i size, __m256i w, __m256i x, __m256i steps) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w)), steps);
}
DF_INLINE ByteDot dot(ByteDot s, const Bytes& w, int32_t x, const Steps& steps) {
    const __m256i words = _mm256_set1_epi32(x);
    return {pinned(_mm256_add_epi32(s.a, multiply_bytes(w.size_a, w.a, words, steps.a))),
            pinned(_mm256_add_epi32(s.b, multiply_bytes(w.size_b, w.b, words, steps.b)))};
}
DF_INLINE ByteDot dot(ByteDot s, const Bytes& w, int32_t x) {
    return dot(s, w, x, {_mm256_set1_epi16(1), _mm256_set1_epi16(1)});
}
DF_INLINE Ints finish(NibbleDot s) {
    const __m256i one = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(s.a, one), _mm256_madd_epi16(s.b, one)};
}
DF_INLINE Ints finish(ByteDot s) { return {s.a, s.b}; }
DF_INLINE Ints finish(NibbleDot s, const Steps& steps) {  // the sums times the steps: 2 x 2^15 x 2^7
    return {_mm256_madd_epi16(s.a, steps.a), _mm256_madd_epi16(s.b, steps.b)};
}

// Int8 keys, four dimensions of 16 positions, against four int16 of a query: exact, for at most 1,024 dims.
struct QueryWord {
    int16_t code[4];
};
struct KeyCodes {  // four positions each, widened
    __m256i v[4];
};
using Words = int32_t __attribute__((vector_size(32)));  // GCC copies sums that are held as __m256i
struct KeyDot {                                          // two partial sums per position, four positions each
    Words v[4];
    DF_INLINE KeyDot zero() { return {}; }
};
DF_INLINE QueryWord query_word(const int16_t* code) { return {{code[0], code[1], code[2], code[3]}}; }
DF_INLINE KeyCodes load_keys(const int8_t* p) {
    const auto* codes = reinterpret_cast<const __m128i*>(p);
    KeyCodes y;
    DF_UNROLL
    for (int i = 0; i < 4; ++i) y.v[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes + i));
    return y;
}
DF_INLINE KeyDot dot(KeyDot s, const KeyCodes& k, const QueryWord& q) {
    const __m256i x = _mm256_set1_epi64x(bit_cast<int64_t>(q));
    DF_UNROLL
    for (int i = 0; i < 4; ++i) s.v[i] += bit_cast<Words>(_mm256_madd_epi16(k.v[i], x));
    return s;
}
DF_INLINE __m256i sum_pairs(Words a, Words b) {  // of a, then of b
    const __m256i mixed = _mm256_hadd_epi32(bit_cast<__m256i>(a), bit_cast<__m256i>(b));
    return _mm256_permute4x64_epi64(mixed, 0xd8);
}
DF_INLINE Ints finish(const KeyDot& s, int32_t /*q_sum*/) {
    return {sum_pairs(s.v[0], s.v[1]), sum_pairs(s.v[2], s.v[3])};
}

}  // namespace deepfast::DF_ISA
