// Attention of one tile of query rows to one piece of context: the inner loops of attention.cpp, which alone
// includes this.
//
// In: scaled queries (for int8 keys also as int16 codes), the pages of one KV head. Out: each row's peak,
// total and output before division. Keys give the scores of the whole piece, a softmax with one peak turns
// them into weights, values are summed by weight. A row's sums run in one order, whatever rows share its
// tile. Few rows read the pages directly; for many, a chunk of keys or values is first widened to floats that
// stay in the L1 cache. Does not know: sequences, threads, where a context is cut.
#pragma once

#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

constexpr int kPieceBlocks = 32;
constexpr int kPiece = kPieceBlocks * kLanes;  // positions of a piece
constexpr size_t kScores = kPiece + kLanes;    // floats from one row of scores to the next; no power of two
constexpr int kTileQueries = (63 / kAttentionRows + 1) * kAttentionRows;  // query rows of one tile

// Query rows of one sequence and KV head, ordered by position, and the memory to work in.
struct Tile {
    float* q;                     // [rows, stride] scaled by C^-0.5
    QueryWord* words;             // [rows, stride / 4] the same as codes; int8 keys only
    float* scores;                // [rows, kScores]
    float* wide;                  // [kAttentionChunk blocks] keys or values as floats
    float* value_scale;           // [kPiece]; int8 values only
    float step[kTileQueries];     // q = step * code
    int32_t sum[kTileQueries];    // of the codes
    int32_t limit[kTileQueries];  // positions that the row sees
    int32_t seen[kTileQueries];   // of the piece at hand
    int rows;
    int dim;
    size_t stride;  // C padded to 16
};

// What a piece gives the rows of a tile.
struct Part {
    float* out;    // [rows, stride]
    float* peak;   // [rows]
    float* total;  // [rows]
};

// What a tile reads of one piece.
struct Piece {
    const uint8_t* page[kPieceBlocks];
    PageLayout layout;
    int first;  // position
    int count;  // positions that the tile's last row sees
};

// Up to kAttentionChunk blocks of keys or values, and those that are read next.
template <class E>
struct Chunk {
    const E* block[kAttentionChunk];
    const uint8_t* next[kAttentionChunk];
    int first;   // position in the piece
    int count;   // positions
    int stride;  // values from one position to the next; for values
};

size_t padded(int dim) { return round_up(static_cast<size_t>(dim), kLanes); }

template <int N>
struct Number {
    static constexpr int value = N;
};

// f(Number<T>, row) over rows [row, rows), T at a time, then the rest at once.
template <int T, class F>
DF_INLINE void each_rows(int row, int rows, const F& f) {
    for (; row + T <= rows; row += T) f(Number<T>(), row);
    if constexpr (T > 1) {
        if (row < rows) each_rows<T - 1>(row, rows, f);
    }
}

// How many vectors T rows go against at a time: blocks of keys, or parts of a value.
constexpr int span_for(int rows) {
    const int most = kAttentionTile / rows;
    return most >= 4 && kAttentionChunk >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// scores[t, b * 16 + lane] of T rows against B blocks [C][16]
template <class E, int T, int B, bool kFetch>
DF_INLINE void score(const Tile& tile, int row, const E* const* keys, const uint8_t* const* next,
                     float* scores) {
    Floats acc[T][B];
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int b = 0; b < B; ++b) acc[t][b] = zero();
    const float* q = tile.q + static_cast<size_t>(row) * tile.stride;
    for (int d = 0; d < tile.dim; ++d) {
        Floats values[B];
        DF_UNROLL
        for (int b = 0; b < B; ++b) {
            values[b] = load(keys[b] + d * kLanes);
            if (kFetch) prefetch(next[b] + static_cast<size_t>(d * kLanes) * sizeof(E));
        }
        DF_UNROLL
        for (int t = 0; t < T; ++t) {
            const Floats x = set(q[static_cast<size_t>(t) * tile.stride + static_cast<size_t>(d)]);
            DF_UNROLL
            for (int b = 0; b < B; ++b) acc[t][b] = fma(values[b], x, acc[t][b]);
        }
    }
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int b = 0; b < B; ++b) store(scores + static_cast<size_t>(t) * kScores + b * kLanes, acc[t][b]);
}

// The same for int8 keys, key scales behind them.
template <int T, int B, bool kFetch>
DF_INLINE void score_codes(const Tile& tile, int row, const int8_t* const* keys, const uint8_t* const* next,
                           const PageLayout& layout, float* scores) {
    KeyDot sums[T][B];
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int b = 0; b < B; ++b) sums[t][b] = KeyDot::zero();
    const QueryWord* q = tile.words + static_cast<size_t>(row) * tile.stride / 4;
    for (int w = 0; w < layout.columns / 4; ++w) {
        KeyCodes codes[B];
        DF_UNROLL
        for (int b = 0; b < B; ++b) {
            codes[b] = load_keys(keys[b] + w * 4 * kLanes);
            if (kFetch) prefetch(next[b] + w * 4 * kLanes);
        }
        DF_UNROLL
        for (int t = 0; t < T; ++t) {
            const QueryWord word = q[static_cast<size_t>(t) * tile.stride / 4 + static_cast<size_t>(w)];
            DF_UNROLL
            for (int b = 0; b < B; ++b) sums[t][b] = dot(sums[t][b], codes[b], word);
        }
    }
    DF_UNROLL
    for (int b = 0; b < B; ++b) {
        const Floats scale = load(reinterpret_cast<const Half*>(keys[b] + layout.scales));
        for (int t = 0; t < T; ++t) {
            const Floats whole = to_float(finish(sums[t][b], tile.sum[row + t]));
            store(scores + static_cast<size_t>(t) * kScores + b * kLanes,
                  mul(whole, mul(scale, set(tile.step[row + t]))));
        }
    }
}

// Scores of all rows of the tile against a chunk of keys.
template <class E, bool kFetch>
void score_chunk(const Tile& tile, const Chunk<E>& chunk) {
    const int blocks = count_chunks(chunk.count, kLanes);
    each_rows<kAttentionRows>(0, tile.rows, [&](auto number, int row) {
        constexpr int T = decltype(number)::value, B = span_for(T);
        if (chunk.first >= tile.seen[row + T - 1]) return;
        float* scores = tile.scores + static_cast<size_t>(row) * kScores + chunk.first;
        int b = 0;
        for (; b + B <= blocks; b += B)
            score<E, T, B, kFetch>(tile, row, chunk.block + b, chunk.next + b, scores + b * kLanes);
        for (; B > 1 && b < blocks; ++b)
            score<E, T, 1, kFetch>(tile, row, chunk.block + b, chunk.next + b, scores + b * kLanes);
    });
}

void score_chunk(const Tile& tile, const Chunk<int8_t>& chunk, const PageLayout& layout) {
    const int blocks = count_chunks(chunk.count, kLanes);
    each_rows<kCodeRows>(0, tile.rows, [&](auto number, int row) {
        constexpr int T = decltype(number)::value, B = kCodeSpan;
        if (chunk.first >= tile.seen[row + T - 1]) return;
        float* scores = tile.scores + static_cast<size_t>(row) * kScores + chunk.first;
        int b = 0;
        for (; b + B <= blocks; b += B)
            score_codes<T, B, true>(tile, row, chunk.block + b, chunk.next + b, layout, scores + b * kLanes);
        for (; B > 1 && b < blocks; ++b)
            score_codes<T, 1, true>(tile, row, chunk.block + b, chunk.next + b, layout, scores + b * kLanes);
    });
}

// One row's scores of a piece to weights e^(score - peak), 0 from `seen` to the end of `count`; peak and
// total. With value scales, the weights are then times those.
void soften(float* scores, int seen, int count, const float* value_scale, float& peak, float& total) {
    const int end = count_chunks(seen, kLanes) * kLanes;
    for (int j = seen; j < end; ++j) scores[j] = -INFINITY;
    Floats top = load(scores);
    for (int j = kLanes; j < end; j += kLanes) top = max(top, load(scores + j));
    peak = maximum(top);
    for (int j = 0; j < end; j += kLanes) store(scores + j, exp(sub(load(scores + j), set(peak))));
    for (int j = seen; j < count; ++j) scores[j] = 0.0f;  // exp() of -infinity is tiny, but not 0
    Floats sums = zero();
    for (int j = 0; j < end; j += kLanes) sums = add(sums, load(scores + j));
    total = sum(sums);
    for (int j = 0; value_scale && j < seen; j += kLanes)
        store(scores + j, mul(load(scores + j), load(value_scale + j)));
    for (int j = seen; value_scale && j < end; ++j) scores[j] = 0.0f;  // whatever the scale there
}

// out[t, columns] += sum over the chunk of weights[t, j] * values[j, columns], V vectors of 16 columns
template <class E, int T, int V, bool kFetch>
DF_INLINE void gather(const Tile& tile, const Chunk<E>& chunk, const float* weights, int column, float* out) {
    Floats acc[T][V];
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int i = 0; i < V; ++i) acc[t][i] = load(out + static_cast<size_t>(t) * tile.stride + i * kLanes);
    const int stride = kFetch ? chunk.stride : kLanes;  // a widened chunk has its columns in panels of 16
    const int run = kFetch ? kLanes : kAttentionChunk * kLanes;  // and its positions one after another
    for (int b = 0; b * kLanes < chunk.count; b += run / kLanes) {
        const E* line = chunk.block[b] + (kFetch ? column : column * kAttentionChunk * kLanes);
        const uint8_t* next = chunk.next[b] + static_cast<size_t>(column) * sizeof(E);
        const int end = chunk.count - b * kLanes < run ? chunk.count - b * kLanes : run;
        const float* weight = weights + b * kLanes;
        for (int j = 0; j < end; ++j, line += stride, ++weight) {
            Floats x[V];
            DF_UNROLL
            for (int i = 0; i < V; ++i)
                x[i] = V == 1 && kFetch ? load_part(line, tile.dim - column) : load(line + i * kLanes);
            if (kFetch) prefetch(next + static_cast<size_t>(j * stride) * sizeof(E));
            DF_UNROLL
            for (int t = 0; t < T; ++t) {
                const Floats w = set(weight[static_cast<size_t>(t) * kScores]);
                DF_UNROLL
                for (int i = 0; i < V; ++i) acc[t][i] = fma(x[i], w, acc[t][i]);
            }
        }
    }
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int i = 0; i < V; ++i) store(out + static_cast<size_t>(t) * tile.stride + i * kLanes, acc[t][i]);
}

// Adds a chunk of values to the output of all rows of the tile.
template <class E, bool kFetch>
void gather_chunk(const Tile& tile, const Chunk<E>& chunk, float* out) {
    each_rows<kAttentionRows>(0, tile.rows, [&](auto number, int row) {
        constexpr int T = decltype(number)::value, V = kFetch ? span_for(T) : 1;
        if (chunk.first >= tile.seen[row + T - 1]) return;
        const float* weights = tile.scores + static_cast<size_t>(row) * kScores + chunk.first;
        float* to = out + static_cast<size_t>(row) * tile.stride;
        int column = 0;
        for (; V > 1 && column + V * kLanes <= tile.dim; column += V * kLanes)
            gather<E, T, V, kFetch>(tile, chunk, weights, column, to + column);
        for (; column < tile.dim; column += kLanes)
            gather<E, T, 1, kFetch>(tile, chunk, weights, column, to + column);
    });
}

// The chunk of a piece from block `b` on; `part` is where keys or values lie in a page.
template <class E>
Chunk<E> chunk_of(const Piece& piece, int b, bool values) {
    const size_t part = values ? piece.layout.values : 0;
    const int blocks = count_chunks(piece.count, kLanes), left = piece.count - b * kLanes;
    Chunk<E> chunk{{},
                   {},
                   b * kLanes,
                   left < kAttentionChunk * kLanes ? left : kAttentionChunk * kLanes,
                   piece.layout.columns};
    for (int i = 0; i < kAttentionChunk && b + i < blocks; ++i) {
        const int next = b + i + kAttentionChunk;
        chunk.block[i] = reinterpret_cast<const E*>(piece.page[b + i] + part);
        // After the last keys come the first values; after the last values nothing that is known here.
        chunk.next[i] = next < blocks ? piece.page[next] + part
                                      : piece.page[values       ? b + i
                                                   : i < blocks ? i
                                                                : 0] +
                                            piece.layout.values;
    }
    return chunk;
}

// Keys as floats.
template <class E>
Chunk<float> widen_keys(const Tile& tile, const Chunk<E>& from) {
    Chunk<float> chunk{{}, {}, from.first, from.count, 0};
    const int size = tile.dim * kLanes;
    for (int b = 0; b * kLanes < from.count; ++b) {
        float* to = tile.wide + b * size;
        chunk.block[b] = to;
        for (int i = 0; i < size; i += kLanes) {
            prefetch(from.next[b] + static_cast<size_t>(i) * sizeof(E));
            store(to + i, load(from.block[b] + i));
        }
    }
    return chunk;
}

// Values as floats in panels of 16 columns, [C / 16][positions of a chunk][16], zeros behind the last column.
template <class E>
Chunk<float> widen_values(const Tile& tile, const Chunk<E>& from) {
    Chunk<float> chunk{{}, {}, from.first, from.count, 0};
    for (int b = 0; b * kLanes < from.count; ++b) {
        float* to = tile.wide + b * kLanes * kLanes;
        chunk.block[b] = to;
        for (int j = 0; j < kLanes; ++j)
            for (int column = 0; column < tile.dim; column += kLanes) {
                const int at = j * from.stride + column;
                prefetch(from.next[b] + static_cast<size_t>(at) * sizeof(E));
                store(to + column * kAttentionChunk * kLanes + j * kLanes,
                      load_part(from.block[b] + at, tile.dim - column));
            }
    }
    return chunk;
}

template <class E>
void score_piece(const Tile& tile, const Piece& piece) {
    for (int b = 0; b * kLanes < piece.count; b += kAttentionChunk) {
        const Chunk<E> keys = chunk_of<E>(piece, b, false);
        if constexpr (sizeof(E) == 1)
            score_chunk(tile, keys, piece.layout);
        else if (tile.rows <= kAttentionRows)
            score_chunk<E, true>(tile, keys);
        else
            score_chunk<float, false>(tile, widen_keys(tile, keys));
    }
}

template <class E>
void gather_piece(const Tile& tile, const Piece& piece, float* out) {
    for (int b = 0; b * kLanes < piece.count; b += kAttentionChunk) {
        const Chunk<E> values = chunk_of<E>(piece, b, true);
        if (tile.rows <= kAttentionRows)
            gather_chunk<E, true>(tile, values, out);
        else
            gather_chunk<float, false>(tile, widen_values(tile, values), out);
    }
}

// One piece of context for all rows of the tile that see some of it.
template <class E>
void attend(Tile& tile, const Piece& piece, const Part& part) {
    const float* value_scale = nullptr;
    if constexpr (sizeof(E) == 1) {
        value_scale = tile.value_scale;
        for (int b = 0; b * kLanes < piece.count; ++b)
            store(tile.value_scale + b * kLanes,
                  load(reinterpret_cast<const Half*>(piece.page[b] + piece.layout.scales) + kLanes));
    }
    for (int i = 0; i < tile.rows; ++i) {
        const int seen = tile.limit[i] - piece.first;
        tile.seen[i] = seen < kPiece ? seen : kPiece;
    }
    score_piece<E>(tile, piece);
    for (int i = 0; i < tile.rows; ++i) {
        float* scores = tile.scores + static_cast<size_t>(i) * kScores;
        if (tile.seen[i] > 0)
            soften(scores, tile.seen[i], piece.count, value_scale, part.peak[i], part.total[i]);
        else
            memset(scores, 0, static_cast<size_t>(piece.count) * sizeof(float));
    }
    memset(part.out, 0, static_cast<size_t>(tile.rows) * tile.stride * sizeof(float));
    gather_piece<E>(tile, piece, part.out);
}

}  // namespace
}  // namespace deepfast::DF_ISA
