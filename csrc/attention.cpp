// Causal attention of any number of new rows per sequence over paged keys and values, grouped-query aware.
//
// In: queries [N, H C], the cache (this layer's new keys and values already stored), the batch. Out: [N, H
// C]. Work is cut into (sequence, KV head, tile of query rows); a query row is one (new token, query head of
// the group), and all rows of a tile share each block of keys and values that is read. Lanes are positions
// for the scores and dimensions for the values, the softmax is online, in steps of 4 blocks from position 0,
// so that a row's result does not depend on its tile. Splitting one sequence's context over threads would cut
// the loop over steps and merge (peak, total, out).
#include "kernels.h"

namespace deepfast::DF_ISA {
namespace {

constexpr int kTileQueries = 32;             // query rows of one piece of work
constexpr int kStepBlocks = 4;               // blocks per online-softmax step
constexpr int kStep = kStepBlocks * kLanes;  // positions per step

// One piece of work in scratch memory; rows are ordered by position.
struct Tile {
    float* q;       // [32, C padded] scaled by C^-0.5
    float* out;     // [32, C padded]
    float* scores;  // [kAttentionRows, 64]
    float peak[kTileQueries];
    float total[kTileQueries];
    int limit[kTileQueries];  // positions that the row sees
    int rows;
    int dim;
    size_t stride;  // C padded to 16
};

// What one step reads: 64 positions from `first`.
struct Step {
    int first;
    size_t blocks[kStepBlocks];  // offsets of this KV head's blocks in the cache, in values
};

size_t padded(int dim) { return round_up(static_cast<size_t>(dim), kLanes); }

// scores[t, b * 16 + lane] of T rows against B blocks [C][16]
template <class E, int T, int B>
DF_INLINE void score(const Tile& tile, int row, const E* keys, const size_t* blocks, float* scores) {
    Floats acc[T][B];
    const E* k[B];
    DF_UNROLL
    for (int b = 0; b < B; ++b) {
        k[b] = keys + blocks[b];
        for (int t = 0; t < T; ++t) acc[t][b] = zero();
    }
    const float* q = tile.q + static_cast<size_t>(row) * tile.stride;
    for (int d = 0; d < tile.dim; ++d) {
        Floats values[B];
        DF_UNROLL
        for (int b = 0; b < B; ++b) values[b] = load(k[b] + d * kLanes);
        DF_UNROLL
        for (int t = 0; t < T; ++t) {
            const Floats x = set(q[static_cast<size_t>(t) * tile.stride + static_cast<size_t>(d)]);
            DF_UNROLL
            for (int b = 0; b < B; ++b) acc[t][b] = fma(values[b], x, acc[t][b]);
        }
    }
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int b = 0; b < B; ++b) store(scores + t * kStep + b * kLanes, acc[t][b]);
}

// scores [64] of one row to weights; `seen` of them count, the rest become 0. Rescales the row's output on a
// new peak.
void soften(Tile& tile, int row, int seen, float* scores) {
    const int vectors = (seen + kLanes - 1) / kLanes;
    for (int j = seen; j < kStep; ++j) scores[j] = -INFINITY;
    Floats top = load(scores);
    for (int i = 1; i < vectors; ++i) top = max(top, load(scores + i * kLanes));
    const float peak = maximum(top);
    if (peak > tile.peak[row]) {
        const float shrink = expf(tile.peak[row] - peak);
        tile.peak[row] = peak;
        tile.total[row] *= shrink;
        float* out = tile.out + static_cast<size_t>(row) * tile.stride;
        for (size_t i = 0; i < tile.stride; i += kLanes) store(out + i, mul(load(out + i), set(shrink)));
    }
    for (int i = 0; i < vectors; ++i) {
        store(scores + i * kLanes, exp(sub(load(scores + i * kLanes), set(tile.peak[row]))));
        for (int j = i * kLanes; j < (i + 1) * kLanes; ++j) scores[j] = j < seen ? scores[j] : 0.0f;
        tile.total[row] += sum(load(scores + i * kLanes));
    }
    for (int j = vectors * kLanes; j < kStep; ++j) scores[j] = 0.0f;
}

// out[t, columns] += sum over `count` positions of weights[t, j] * values[j, columns], V vectors of 16
// columns
template <class E, int T, int V>
DF_INLINE void gather(const Tile& tile, int row, const E* values, const size_t* blocks, int count,
                      const float* weights, int column) {
    Floats acc[T][V];
    float* out = tile.out + static_cast<size_t>(row) * tile.stride + column;
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int i = 0; i < V; ++i) acc[t][i] = load(out + static_cast<size_t>(t) * tile.stride + i * kLanes);
    for (int j = 0; j < count; ++j) {
        const E* line = values + blocks[j / kLanes] + (j % kLanes) * tile.dim + column;
        Floats x[V];
        if (V == 1) {
            x[0] = load_part(line, tile.dim - column);
        } else {
            DF_UNROLL
            for (int i = 0; i < V; ++i) x[i] = load(line + i * kLanes);
        }
        DF_UNROLL
        for (int t = 0; t < T; ++t) {
            const Floats weight = set(weights[t * kStep + j]);
            DF_UNROLL
            for (int i = 0; i < V; ++i) acc[t][i] = fma(x[i], weight, acc[t][i]);
        }
    }
    DF_UNROLL
    for (int t = 0; t < T; ++t)
        for (int i = 0; i < V; ++i) store(out + static_cast<size_t>(t) * tile.stride + i * kLanes, acc[t][i]);
}

// T rows of the tile from `row` on, against one step of positions.
template <class E, int T>
void attend(Tile& tile, int row, const E* keys, const E* values, const Step& step) {
    const int most = tile.limit[row + T - 1] - step.first;
    if (most <= 0) return;
    const int count = most < kStep ? most : kStep, blocks = (count + kLanes - 1) / kLanes;
    int b = 0;
    for (; b + kAttentionSpan <= blocks; b += kAttentionSpan)
        score<E, T, kAttentionSpan>(tile, row, keys, step.blocks + b, tile.scores + b * kLanes);
    for (; b < blocks; ++b) score<E, T, 1>(tile, row, keys, step.blocks + b, tile.scores + b * kLanes);
    for (int t = 0; t < T; ++t) {
        const int seen = tile.limit[row + t] - step.first;
        float* scores = tile.scores + t * kStep;
        if (seen > 0)
            soften(tile, row + t, seen < kStep ? seen : kStep, scores);
        else
            memset(scores, 0, kStep * sizeof(float));
    }
    constexpr int kWide = kAttentionSpan * kLanes;
    int column = 0;
    for (; kAttentionSpan > 1 && column + kWide <= tile.dim; column += kWide)
        gather<E, T, kAttentionSpan>(tile, row, values, step.blocks, count, tile.scores, column);
    for (; column < tile.dim; column += kLanes)
        gather<E, T, 1>(tile, row, values, step.blocks, count, tile.scores, column);
}

template <class E, int T>
void attend_rows(Tile& tile, int row, const E* keys, const E* values, const Step& step) {
    for (; row + T <= tile.rows; row += T) attend<E, T>(tile, row, keys, values, step);
    if constexpr (T > 1) {
        if (row < tile.rows) attend_rows<E, T / 2>(tile, row, keys, values, step);
    }
}

// Which rows a tile holds: `first`.. of the (new token, head of the group) pairs of one sequence and KV head.
struct Place {
    int sequence, kv_head, first;
};

struct Job {
    const float* q;
    float* y;
    int heads;  // H
    const Cache* cache;
    int layer;
    const BatchView* batch;
};

// Query row `i` of a place: where it lies in q and y.
size_t offset_of(const Job& job, const Place& place, int i) {
    const int group = job.heads / job.cache->heads, pair = place.first + i;
    const int row = job.batch->starts[place.sequence] + pair / group;
    const int head = place.kv_head * group + pair % group;
    return (static_cast<size_t>(row) * static_cast<size_t>(job.heads) + static_cast<size_t>(head)) *
           static_cast<size_t>(job.cache->dim);
}

void load_tile(const Job& job, const Place& place, Tile& tile) {
    const BatchView& batch = *job.batch;
    const int s = place.sequence, group = job.heads / job.cache->heads;
    const int count = batch.starts[s + 1] - batch.starts[s];
    const float scale = 1.0f / sqrtf(static_cast<float>(tile.dim));
    tile.rows = count * group - place.first < kTileQueries ? count * group - place.first : kTileQueries;
    for (int i = 0; i < tile.rows; ++i) {
        const float* q = job.q + offset_of(job, place, i);
        float* to = tile.q + static_cast<size_t>(i) * tile.stride;
        for (int d = 0; d < tile.dim; ++d) to[d] = q[d] * scale;
        tile.peak[i] = -INFINITY;
        tile.total[i] = 0.0f;
        tile.limit[i] = batch.context_lens[s] - count + (place.first + i) / group + 1;
    }
    memset(tile.out, 0, static_cast<size_t>(tile.rows) * tile.stride * sizeof(float));
}

void store_tile(const Job& job, const Place& place, const Tile& tile) {
    for (int i = 0; i < tile.rows; ++i) {
        float* y = job.y + offset_of(job, place, i);
        const float* out = tile.out + static_cast<size_t>(i) * tile.stride;
        const Floats scale = set(1.0f / tile.total[i]);
        for (int d = 0; d < tile.dim; d += kLanes) store_part(y + d, mul(load(out + d), scale), tile.dim - d);
    }
}

template <class E>
void run_tile(const Job& job, const Place& place, Tile& tile) {
    const Cache& cache = *job.cache;
    const size_t size = static_cast<size_t>(cache.dim) * kLanes, heads = static_cast<size_t>(cache.heads);
    const size_t layer = static_cast<size_t>(job.layer) * static_cast<size_t>(cache.blocks);
    const int32_t* table =
        job.batch->block_tables + static_cast<size_t>(place.sequence) * static_cast<size_t>(job.batch->width);
    const int end = tile.limit[tile.rows - 1];
    for (int first = 0; first < end; first += kStep) {
        Step step{first, {}};
        for (int b = 0; b < kStepBlocks && first + b * kLanes < end; ++b) {
            const auto block = static_cast<size_t>(table[first / kLanes + b]);
            step.blocks[b] = ((layer + block) * heads + static_cast<size_t>(place.kv_head)) * size;
        }
        attend_rows<E, kAttentionRows>(tile, 0, static_cast<const E*>(cache.keys),
                                       static_cast<const E*>(cache.values), step);
    }
}

struct TileMemory {
    float *q, *out, *scores;
};

TileMemory take_tile(Scratch& s, int dim) {
    const size_t values = kTileQueries * padded(dim);
    return {s.take<float>(values), s.take<float>(values), s.take<float>(kAttentionRows * kStep)};
}

int tiles_of(const BatchView& batch, int s, int group) {
    return count_chunks((batch.starts[s + 1] - batch.starts[s]) * group, kTileQueries);
}

// The place of piece `item`: late tiles (the longest) of a sequence come first.
Place place_of(const BatchView& batch, int kv_heads, int group, int item) {
    int s = 0;
    for (int pieces; item >= (pieces = tiles_of(batch, s, group) * kv_heads); ++s) item -= pieces;
    const int tiles = tiles_of(batch, s, group);
    return {s, item % kv_heads, (tiles - 1 - item / kv_heads) * kTileQueries};
}

}  // namespace

size_t attention_scratch(const Pool& pool, const Cache& cache) {
    Scratch one{nullptr};
    take_tile(one, cache.dim);
    return one.used * static_cast<size_t>(pool.threads());
}

void attention(Pool& pool, const float* q, int heads, const Cache& cache, int layer, const BatchView& batch,
               float* y, void* scratch) {
    const Job job{q, y, heads, &cache, layer, &batch};
    const int group = heads / cache.heads;
    int items = 0;
    for (int s = 0; s < batch.sequences; ++s) items += tiles_of(batch, s, group) * cache.heads;
    Scratch one{nullptr};
    take_tile(one, cache.dim);
    pool.each(items, [&](int item, int worker) {
        Scratch memory{static_cast<char*>(scratch) + static_cast<size_t>(worker) * one.used};
        const TileMemory m = take_tile(memory, cache.dim);
        Tile tile{m.q, m.out, m.scores, {}, {}, {}, 0, cache.dim, padded(cache.dim)};
        const Place place = place_of(batch, cache.heads, group, item);
        load_tile(job, place, tile);
        if (cache.half)
            run_tile<Half>(job, place, tile);
        else
            run_tile<float>(job, place, tile);
        store_tile(job, place, tile);
    });
}

}  // namespace deepfast::DF_ISA
