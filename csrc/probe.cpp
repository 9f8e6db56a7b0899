// What this machine allows, by the kernels' own means: int8 dot products, and memory read from end to end.
//
// In: how much to do. Out: sums that nobody wants, so that no compiler leaves the work out. The caller takes
// the time; its best is the limit that linear (many rows) and linear or attention (one row) are held against.
// Knows no weights.
#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

constexpr int kWords = 128;   // of each row of x, in the first cache
constexpr int kPasses = 256;  // over them in one chunk
constexpr size_t kPiece = 1 << 18;  // floats of a chunk that is read: 1 MiB
constexpr int kStreams = 8;         // sums beside each other

void dot_chunk(int seed, int32_t* sums /*[16]*/) {
    alignas(64) uint8_t codes[kTilePanels][64];
    alignas(64) int8_t x[kTileRows][4 * kWords];
    memset(codes, 1 + (seed & 7), sizeof codes);
    memset(x, 1 + (seed & 1), sizeof x);
    Nibbles w[kTilePanels], high;
    NibbleDot acc[kTileRows][kTilePanels];
    DF_UNROLL
    for (int p = 0; p < kTilePanels; ++p) load_nibbles(codes[p], w[p], high);
    DF_UNROLL
    for (int t = 0; t < kTileRows; ++t) {
        DF_UNROLL
        for (int p = 0; p < kTilePanels; ++p) acc[t][p] = NibbleDot::start(0);
    }
    for (int pass = 0; pass < kPasses; ++pass)
        for (int k = 0; k < kWords; k += 4) {
            DF_UNROLL
            for (int i = 0; i < 4; ++i) {
                DF_UNROLL
                for (int t = 0; t < kTileRows; ++t) {
                    const int32_t word = load_word(x[t] + 4 * (k + i));
                    DF_UNROLL
                    for (int p = 0; p < kTilePanels; ++p) acc[t][p] = dot(acc[t][p], w[p], word);
                }
            }
        }
    Floats total = zero();
    DF_UNROLL
    for (int t = 0; t < kTileRows; ++t)
        DF_UNROLL
        for (int p = 0; p < kTilePanels; ++p) total = add(total, to_float(finish(acc[t][p])));
    store(sums, round(total));
}

void read_chunk(const float* x, size_t count /*a multiple of 128*/, int32_t* sums /*[16]*/) {
    Floats acc[kStreams];
    for (int i = 0; i < kStreams; ++i) acc[i] = zero();
    for (size_t at = 0; at < count; at += kStreams * kLanes) {
        DF_UNROLL
        for (int i = 0; i < kStreams; ++i) acc[i] = max(acc[i], load(x + at + static_cast<size_t>(i) * kLanes));
    }
    for (int i = 1; i < kStreams; ++i) acc[0] = max(acc[0], acc[i]);
    store(sums, round(acc[0]));
}

}  // namespace

int64_t probe_dots(Pool& pool, int chunks, int32_t* sums) {
    pool.each(chunks, [&](int chunk, int worker) { dot_chunk(chunk, sums + worker * kLanes); });
    return int64_t{chunks} * kPasses * kWords * kTileRows * kTilePanels * 4 * kLanes;
}

void probe_read(Pool& pool, const float* x, size_t n, int32_t* sums) {
    pool.each(static_cast<int>(n / kPiece), [&](int chunk, int worker) {
        read_chunk(x + static_cast<size_t>(chunk) * kPiece, kPiece, sums + worker * kLanes);
    });
}

}  // namespace deepfast::DF_ISA
