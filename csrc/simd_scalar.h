// The 16 lanes of simd.h as plain loops: any machine, vectorised by the compiler where it can (ARM). Included
// by simd.h.
#pragma once

namespace deepfast::DF_ISA {

constexpr int kTileRows = 2;
constexpr int kTilePanels = 1;
constexpr int kStreamPanels = 1;
constexpr int kNibblePanels = 1;
constexpr int kAttentionRows = 2;   // query rows that share a vector of keys or values
constexpr int kAttentionTile = 2;   // query rows x (blocks of keys or vectors of a value)
constexpr int kAttentionChunk = 2;  // blocks of keys or values, as floats, that stay in the L1 cache
constexpr int kCodeRows = 1;        // the same for int8 keys
constexpr int kCodeSpan = 1;

struct Floats {
    float v[kLanes];
};
struct Ints {
    int32_t v[kLanes];
};

template <class F>
DF_INLINE Floats lanes(const F& f) {
    Floats y;
    for (int i = 0; i < kLanes; ++i) y.v[i] = f(i);
    return y;
}

DF_INLINE Floats set(float x) {
    return lanes([&](int) { return x; });
}
DF_INLINE Floats zero() { return set(0.0f); }
DF_INLINE Floats load(const float* p) {
    return lanes([&](int i) { return p[i]; });
}
DF_INLINE Floats load(const Half* p) {
    return lanes([&](int i) { return to_float(p[i]); });
}
DF_INLINE Floats load(const Bfloat* p) {
    return lanes([&](int i) { return to_float(p[i]); });
}
DF_INLINE Floats load(const int8_t* p) {
    return lanes([&](int i) { return static_cast<float>(p[i]); });
}
DF_INLINE void store(float* p, Floats x) { memcpy(p, x.v, sizeof x.v); }
DF_INLINE void store(Half* p, Floats x) {
    for (int i = 0; i < kLanes; ++i) p[i] = to_half(x.v[i]);
}
DF_INLINE Floats add(Floats x, Floats y) {
    return lanes([&](int i) { return x.v[i] + y.v[i]; });
}
DF_INLINE Floats sub(Floats x, Floats y) {
    return lanes([&](int i) { return x.v[i] - y.v[i]; });
}
DF_INLINE Floats mul(Floats x, Floats y) {
    return lanes([&](int i) { return x.v[i] * y.v[i]; });
}
DF_INLINE Floats div(Floats x, Floats y) {
    return lanes([&](int i) { return x.v[i] / y.v[i]; });
}
DF_INLINE Floats fma(Floats x, Floats y, Floats z) {
    return lanes([&](int i) { return x.v[i] * y.v[i] + z.v[i]; });
}
DF_INLINE Floats max(Floats x, Floats y) {
    return lanes([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; });
}
DF_INLINE Floats min(Floats x, Floats y) {
    return lanes([&](int i) { return x.v[i] < y.v[i] ? x.v[i] : y.v[i]; });
}
DF_INLINE Floats abs(Floats x) {
    return lanes([&](int i) { return fabsf(x.v[i]); });
}

DF_INLINE Ints round(Floats x) {  // nearest, ties to even, for |x| below 2^22
    Ints y;
    for (int i = 0; i < kLanes; ++i)
        y.v[i] = static_cast<int32_t>(bit_cast<uint32_t>(x.v[i] + 0x1.8p23f) - 0x4b400000u);
    return y;
}
DF_INLINE Floats to_float(Ints x) {
    return lanes([&](int i) { return static_cast<float>(x.v[i]); });
}
DF_INLINE void store(int32_t* p, Ints x) { memcpy(p, x.v, sizeof x.v); }
// The values, all in -128..127, as bytes; and their sum.
DF_INLINE void store_bytes(int8_t* p, Ints x) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(x.v[i]);
}
DF_INLINE int32_t sum(Ints x) {
    int32_t total = 0;
    for (int i = 0; i < kLanes; ++i) total += x.v[i];
    return total;
}
DF_INLINE Ints add(Ints x, Ints y) {
    for (int i = 0; i < kLanes; ++i) x.v[i] += y.v[i];
    return x;
}
DF_INLINE Floats exp2i(Ints n) {  // 2^n for n in [-126, 127]
    return lanes([&](int i) { return bit_cast<float>((static_cast<uint32_t>(n.v[i]) + 127u) << 23); });
}

// One fixed order of addition, so that a sum is the same in every tile.
DF_INLINE float sum(Floats x) {
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) x.v[i] += x.v[i + n];
    return x.v[0];
}
DF_INLINE float maximum(Floats x) {
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) x.v[i] = x.v[i] > x.v[i + n] ? x.v[i] : x.v[i + n];
    return x.v[0];
}

struct Nibbles {  // unsigned bytes 0..15, four per lane
    uint8_t v[4 * kLanes];
};
struct Bytes {  // signed codes, four per lane
    int8_t v[4 * kLanes];
};
DF_INLINE void load_nibbles(const uint8_t* p, Nibbles& low, Nibbles& high) {
    for (int i = 0; i < 4 * kLanes; ++i) {
        low.v[i] = p[i] & 15;
        high.v[i] = p[i] >> 4;
    }
}
DF_INLINE void store(uint8_t* p, const Nibbles& x) { memcpy(p, x.v, sizeof x.v); }

struct Steps {  // what each lane's sum is multiplied by
    int32_t v[kLanes];
};
DF_INLINE Steps load_steps(const int8_t* p) {
    Steps y;
    for (int i = 0; i < kLanes; ++i) y.v[i] = p[i];
    return y;
}

struct NibbleDot {
    using Codes = Nibbles;
    static constexpr bool kStepsInside = false;  // are products multiplied by steps as they are added?
    int32_t v[kLanes];
    DF_INLINE int32_t start_word(int32_t sum) { return -8 * sum; }
    DF_INLINE NibbleDot start(int32_t word) {
        NibbleDot s;
        for (int i = 0; i < kLanes; ++i) s.v[i] = word;
        return s;
    }
    DF_INLINE Nibbles load(const uint8_t* p) {
        Nibbles y;
        memcpy(y.v, p, sizeof y.v);
        return y;
    }
};
struct ByteDot {
    using Codes = Bytes;
    static constexpr bool kStepsInside = false;
    int32_t v[kLanes];
    DF_INLINE int32_t start_word(int32_t /*sum*/) { return 0; }
    DF_INLINE ByteDot start(int32_t /*word*/) { return {}; }
    DF_INLINE Bytes load(const uint8_t* p) {
        Bytes y;
        memcpy(y.v, p, sizeof y.v);
        return y;
    }
};
template <class Sum>
DF_INLINE Sum dot(Sum s, const typename Sum::Codes& w, int32_t x) {
    int8_t b[4];
    memcpy(b, &x, 4);
    for (int i = 0; i < kLanes; ++i)
        s.v[i] += w.v[4 * i] * b[0] + w.v[4 * i + 1] * b[1] + w.v[4 * i + 2] * b[2] + w.v[4 * i + 3] * b[3];
    return s;
}
template <class Sum>
DF_INLINE Ints finish(const Sum& s) {
    Ints y;
    memcpy(y.v, s.v, sizeof y.v);
    return y;
}
template <class Sum>
DF_INLINE Ints finish(const Sum& s, const Steps& steps) {  // the sums times the steps, below 2^27
    Ints y;
    for (int i = 0; i < kLanes; ++i) y.v[i] = s.v[i] * steps.v[i];
    return y;
}

// Int8 keys, four dimensions of 16 positions, against four int16 of a query: exact, for at most 1,024 dims.
struct QueryWord {
    int16_t code[4];
};
struct KeyCodes {
    int16_t v[4 * kLanes];
};
struct KeyDot {
    int32_t v[kLanes];
    DF_INLINE KeyDot zero() { return {}; }
};
DF_INLINE QueryWord query_word(const int16_t* code) { return {{code[0], code[1], code[2], code[3]}}; }
DF_INLINE KeyCodes load_keys(const int8_t* p) {
    KeyCodes y;
    for (int i = 0; i < 4 * kLanes; ++i) y.v[i] = p[i];
    return y;
}
DF_INLINE KeyDot dot(KeyDot s, const KeyCodes& k, const QueryWord& q) {
    for (int i = 0; i < kLanes; ++i) {
        const int16_t* w = k.v + 4 * i;
        s.v[i] += w[0] * q.code[0] + w[1] * q.code[1] + w[2] * q.code[2] + w[3] * q.code[3];
    }
    return s;
}
DF_INLINE Ints finish(const KeyDot& s, int32_t /*q_sum*/) {
    Ints y;
    memcpy(y.v, s.v, sizeof y.v);
    return y;
}

}  // namespace deepfast::DF_ISA
