// Causal attention of any number of new rows per sequence over paged keys and values, grouped-query aware.
//
// In: queries [N, H C], the cache (this layer's new keys and values already stored), the batch. Out: [N, H C].
// A query row is one (new token, query head of the group) of a sequence and KV head; the rows of a tile share
// each block of keys and values that is read. A context is cut into pieces of 512 positions, the last one
// shorter, whatever the batch and the threads:
//
//   positions  0 ...... 511 | 512 ..... 1023 | 1024 .. 1100      each piece, for each row of the tile:
//              piece 0        piece 1          piece 2           peak, total, out [C] (not yet divided by total)
//
// and the pieces of a row are merged in order. Who computes them is a matter of speed alone: with few rows every
// piece is work of its own (one sequence keeps all threads busy), else a tile's pieces follow each other. Lanes
// are positions for the scores and dimensions for the values. The page of the cache is drawn at `Cache` in ops.h.
#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

constexpr int kPieceBlocks = 32;
constexpr int kPiece = kPieceBlocks * kLanes;  // positions of a piece
constexpr size_t kScores = kPiece + kLanes;    // floats from one row of scores to the next; no power of two
constexpr int kTileQueries = (63 / kAttentionRows + 1) * kAttentionRows;  // query rows of one tile
constexpr int kSplitTiles = 2;  // with at most so many tiles per head, pieces are work of their own
constexpr int kQueryLimit = 16256;  // 127 * 128: the largest code of a query against int8 keys

// Query rows of one sequence and KV head, ordered by position, and the memory to work in.
struct Tile {
    float* q;            // [rows, stride] scaled by C^-0.5
    QueryWord* words;    // [rows, stride / 4] the same as codes; int8 keys only
    float* scores;       // [rows, kScores]
    float* wide;         // [kAttentionChunk blocks] keys or values as floats
    float* value_scale;  // [kPiece]; int8 values only
    float step[kTileQueries];    // q = step * code
    int32_t sum[kTileQueries];   // of the codes
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
DF_INLINE void score(const Tile& tile, int row, const E* const* keys, const uint8_t* const* next, float* scores) {
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

// One row's scores of a piece to weights e^(score - peak), 0 from `seen` to the end of `count`; peak and total.
// With value scales, the weights are then times those.
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
        for (; column < tile.dim; column += kLanes) gather<E, T, 1, kFetch>(tile, chunk, weights, column, to + column);
    });
}

// The chunk of a piece from block `b` on; `part` is where keys or values lie in a page.
template <class E>
Chunk<E> chunk_of(const Piece& piece, int b, bool values) {
    const size_t part = values ? piece.layout.values : 0;
    const int blocks = count_chunks(piece.count, kLanes), left = piece.count - b * kLanes;
    Chunk<E> chunk{{}, {}, b * kLanes, left < kAttentionChunk * kLanes ? left : kAttentionChunk * kLanes, piece.layout.columns};
    for (int i = 0; i < kAttentionChunk && b + i < blocks; ++i) {
        const int next = b + i + kAttentionChunk;
        chunk.block[i] = reinterpret_cast<const E*>(piece.page[b + i] + part);
        // After the last keys come the first values; after the last values nothing that is known here.
        chunk.next[i] = next < blocks ? piece.page[next] + part
                                      : piece.page[values ? b + i : i < blocks ? i : 0] + piece.layout.values;
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

// Adds to `whole` what the piece at position `first` gave the rows that see it.
void merge(const Tile& tile, const Part& whole, const Part& part, int first) {
    for (int i = 0; i < tile.rows; ++i) {
        if (tile.limit[i] <= first) continue;
        const float peak = part.peak[i] > whole.peak[i] ? part.peak[i] : whole.peak[i];
        const float old = expf(whole.peak[i] - peak), add = expf(part.peak[i] - peak);
        float* out = whole.out + static_cast<size_t>(i) * tile.stride;
        const float* more = part.out + static_cast<size_t>(i) * tile.stride;
        for (size_t d = 0; d < tile.stride; d += kLanes)
            store(out + d, fma(load(more + d), set(add), mul(load(out + d), set(old))));
        whole.total[i] = whole.total[i] * old + part.total[i] * add;
        whole.peak[i] = peak;
    }
}

struct Job {
    const float* q;
    float* y;
    int heads;  // H
    const Cache* cache;
    int layer;
    const BatchView* batch;
};

// How the work on one sequence is cut: tiles x G x spans.
struct Cut {
    int rows;   // query rows per KV head
    int tiles;
    int spans;  // work per tile and head: its pieces one by one, or 1 for all

    Cut(const BatchView& batch, int s, int group) {
        rows = (batch.starts[s + 1] - batch.starts[s]) * group;
        tiles = count_chunks(rows, kTileQueries);
        spans = tiles <= kSplitTiles ? count_chunks(batch.context_lens[s], kPiece) : 1;
    }
    // Floats of one Part in scratch memory.
    size_t part(size_t stride) const {
        return round_up(static_cast<size_t>(rows < kTileQueries ? rows : kTileQueries) * (stride + 2), kLanes);
    }
};

// One piece of work: a tile of a sequence and KV head, and which of its pieces.
struct Place {
    int sequence, kv_head, first, span, spans;
    float* parts;   // [spans] Parts; null when spans is 1
    int32_t* done;  // spans that are finished
};

Part part_at(float* memory, const Tile& tile) {
    float* peak = memory + static_cast<size_t>(tile.rows) * tile.stride;
    return {memory, peak, peak + tile.rows};
}

// Query row `i` of a place: where it lies in q and y.
size_t offset_of(const Job& job, const Place& place, int i) {
    const int group = job.heads / job.cache->heads, pair = place.first + i;
    const int row = job.batch->starts[place.sequence] + pair / group;
    const int head = place.kv_head * group + pair % group;
    return (static_cast<size_t>(row) * static_cast<size_t>(job.heads) + static_cast<size_t>(head)) *
           static_cast<size_t>(job.cache->dim);
}

// The codes of one row of queries, zeros behind them; a row with NaN or infinity has a step of NaN.
void quantise_query(Tile& tile, int row) {
    const float* q = tile.q + static_cast<size_t>(row) * tile.stride;
    Floats top = zero(), poison = zero();
    for (size_t d = 0; d < tile.stride; d += kLanes) {
        top = max(top, abs(load(q + d)));
        poison = add(poison, mul(load(q + d), zero()));
    }
    const float most = maximum(top), inverse = most > 1e-30f ? kQueryLimit / most : 0.0f;
    tile.step[row] = (most > 1e-30f ? most / kQueryLimit : 0.0f) + sum(poison);
    tile.sum[row] = 0;
    for (size_t d = 0; d < tile.stride; d += kLanes) {
        alignas(64) int32_t whole[kLanes];
        int16_t codes[kLanes];
        store(whole, round(mul(load(q + d), set(inverse))));
        for (int i = 0; i < kLanes; ++i) {
            codes[i] = static_cast<int16_t>(whole[i]);
            tile.sum[row] += codes[i];
        }
        for (int i = 0; i < kLanes; i += 4)
            tile.words[(static_cast<size_t>(row) * tile.stride + d + static_cast<size_t>(i)) / 4] = query_word(codes + i);
    }
}

void load_tile(const Job& job, const Place& place, Tile& tile) {
    const BatchView& batch = *job.batch;
    const int s = place.sequence, group = job.heads / job.cache->heads;
    const int count = batch.starts[s + 1] - batch.starts[s];
    const Floats scale = set(1.0f / sqrtf(static_cast<float>(tile.dim)));
    tile.rows = count * group - place.first < kTileQueries ? count * group - place.first : kTileQueries;
    for (int i = 0; i < tile.rows; ++i) {
        const float* q = job.q + offset_of(job, place, i);
        float* to = tile.q + static_cast<size_t>(i) * tile.stride;
        for (int d = 0; d < tile.dim; d += kLanes) store(to + d, mul(load_part(q + d, tile.dim - d), scale));
        tile.limit[i] = batch.context_lens[s] - count + (place.first + i) / group + 1;
        if (job.cache->format == KVFormat::q8) quantise_query(tile, i);
    }
}

void store_tile(const Job& job, const Place& place, const Tile& tile, const Part& part) {
    for (int i = 0; i < tile.rows; ++i) {
        float* y = job.y + offset_of(job, place, i);
        const float* out = part.out + static_cast<size_t>(i) * tile.stride;
        const Floats scale = set(1.0f / part.total[i]);
        for (int d = 0; d < tile.dim; d += kLanes) store_part(y + d, mul(load(out + d), scale), tile.dim - d);
    }
}

// Attention of a tile to piece `index` of its context; false where no row sees any of it.
bool run_piece(const Job& job, const Place& place, Tile& tile, int index, const Part& part) {
    const Cache& cache = *job.cache;
    Piece piece{{}, page_of(cache.format, cache.dim), index * kPiece, tile.limit[tile.rows - 1] - index * kPiece};
    if (piece.count <= 0) return false;
    if (piece.count > kPiece) piece.count = kPiece;
    const int32_t* table = job.batch->block_tables +
                           static_cast<size_t>(place.sequence) * static_cast<size_t>(job.batch->width) +
                           index * kPieceBlocks;
    for (int b = 0; b * kLanes < piece.count; ++b)
        piece.page[b] = pages_of(cache, job.layer, table[b]) + static_cast<size_t>(place.kv_head) * piece.layout.bytes;
    if (cache.format == KVFormat::q8)
        attend<int8_t>(tile, piece, part);
    else if (cache.format == KVFormat::f16)
        attend<Half>(tile, piece, part);
    else
        attend<float>(tile, piece, part);
    return true;
}

// All pieces one after another.
void run_tile(const Job& job, const Place& place, Tile& tile, float* memory, size_t size) {
    const Part whole = part_at(memory, tile), part = part_at(memory + size, tile);
    run_piece(job, place, tile, 0, whole);
    for (int i = 1; run_piece(job, place, tile, i, part); ++i) merge(tile, whole, part, i * kPiece);
    store_tile(job, place, tile, whole);
}

// One piece; whoever finishes the last one of a tile merges them all.
void run_span(const Job& job, const Place& place, Tile& tile, size_t size) {
    run_piece(job, place, tile, place.span, part_at(place.parts + static_cast<size_t>(place.span) * size, tile));
    if (__atomic_add_fetch(place.done, 1, __ATOMIC_ACQ_REL) < place.spans) return;
    const Part whole = part_at(place.parts, tile);
    for (int i = 1; i < place.spans; ++i)
        merge(tile, whole, part_at(place.parts + static_cast<size_t>(i) * size, tile), i * kPiece);
    store_tile(job, place, tile, whole);
}

// The memory of one worker; with a null buffer its size alone.
float* take_tile(Scratch& s, bool codes, Tile& tile) {
    const size_t values = kTileQueries * tile.stride;
    tile.q = s.take<float>(values);
    tile.words = s.take<QueryWord>(codes ? values / 4 : 0);
    tile.scores = s.take<float>(kTileQueries * kScores);
    tile.wide = s.take<float>(kAttentionChunk * kLanes * tile.stride);
    tile.value_scale = s.take<float>(codes ? kPiece : 0);
    return s.take<float>(2 * (values + 2 * kTileQueries));
}

// The memory that all workers share: counters, then Parts of the sequences that are cut into pieces.
struct Shared {
    int items = 0, counters = 0;
    size_t floats = 0;

    void add(const Cut& cut, int kv_heads, size_t stride) {
        const int tiles = cut.tiles * kv_heads;
        items += tiles * cut.spans;
        if (cut.spans == 1) return;
        counters += tiles;
        floats += static_cast<size_t>(tiles * cut.spans) * cut.part(stride);
    }
};

Shared shared_by(const BatchView& batch, int kv_heads, int group, size_t stride) {
    Shared all;
    for (int s = 0; s < batch.sequences; ++s) all.add(Cut(batch, s, group), kv_heads, stride);
    return all;
}

// The place of piece of work `item`: late tiles (the longest) of a sequence come first.
Place place_of(const Job& job, int item, size_t stride, int32_t* counters, float* parts) {
    const int kv_heads = job.cache->heads, group = job.heads / kv_heads;
    Shared before;
    for (int s = 0;; ++s) {
        const Cut cut(*job.batch, s, group);
        const int at = item - before.items, spans = cut.spans;
        if (at >= cut.tiles * kv_heads * spans) {
            before.add(cut, kv_heads, stride);
            continue;
        }
        const int tile = at / spans;
        return {s, tile % kv_heads, (cut.tiles - 1 - tile / kv_heads) * kTileQueries, at % spans, spans,
                parts + before.floats + static_cast<size_t>(tile * spans) * cut.part(stride),
                counters + before.counters + tile};
    }
}

}  // namespace

size_t attention_scratch(const Pool& pool, int heads, const Cache& cache, const BatchView& batch) {
    Tile tile{};
    tile.stride = padded(cache.dim);
    Scratch s{nullptr};
    take_tile(s, cache.format == KVFormat::q8, tile);
    s.used *= static_cast<size_t>(pool.threads());
    const Shared all = shared_by(batch, cache.heads, heads / cache.heads, tile.stride);
    s.take<int32_t>(static_cast<size_t>(all.counters));
    s.take<float>(all.floats);
    return s.used;
}

void attention(Pool& pool, const float* q, int heads, const Cache& cache, int layer, const BatchView& batch,
               float* y, void* scratch) {
    const Job job{q, y, heads, &cache, layer, &batch};
    const bool codes = cache.format == KVFormat::q8;
    const size_t stride = padded(cache.dim);
    const Shared all = shared_by(batch, cache.heads, heads / cache.heads, stride);
    Scratch s{static_cast<char*>(scratch)}, one{nullptr};
    auto* counters = s.take<int32_t>(static_cast<size_t>(all.counters));
    auto* parts = s.take<float>(all.floats);
    Tile sizes{};
    sizes.stride = stride;
    take_tile(one, codes, sizes);
    memset(counters, 0, static_cast<size_t>(all.counters) * sizeof(int32_t));
    char* workers = s.base + s.used;
    pool.each(all.items, [&](int item, int worker) {
        Scratch memory{workers + static_cast<size_t>(worker) * one.used};
        Tile tile{};
        tile.dim = cache.dim;
        tile.stride = stride;
        float* own = take_tile(memory, codes, tile);
        const Place place = place_of(job, item, stride, counters, parts);
        load_tile(job, place, tile);
        if (place.spans == 1)
            run_tile(job, place, tile, own, kTileQueries * (stride + 2));
        else
            run_span(job, place, tile, Cut(batch, place.sequence, heads / cache.heads).part(stride));
    });
}

}  // namespace deepfast::DF_ISA
