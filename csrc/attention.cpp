// Causal attention of any number of new rows per sequence over paged keys and values, grouped-query aware.
//
// In: queries [N, H C], the cache (this layer's new keys and values already stored), the batch. Out: [N, H
// C]. A query row is one (new token, query head of the group) of a sequence and KV head; the rows of a tile
// share each block of keys and values that is read. A context is cut into pieces of 512 positions, whatever
// the batch and the threads, and what the pieces give a row is merged in order:
//
//   positions   0 ....... 511 | 512 ...... 1023 | 1024 ... 1100
//               piece 0         piece 1           piece 2          -> peak, total, out [C] of each -> y [C]
//
// Who computes them is a matter of speed alone: with few rows every piece is work of its own, so that one
// sequence keeps all threads busy; else the pieces of a tile follow each other. The loops over one piece are
// in attend.h, the page of the cache is drawn at `Cache` in ops.h.
#include "attend.h"

namespace deepfast::DF_ISA {
namespace {

constexpr int kSplitTiles = 2;      // with at most so many tiles per head, pieces are work of their own
constexpr int kQueryLimit = 16256;  // 127 * 128: the largest code of a query against int8 keys

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
    int rows;  // query rows per KV head
    int tiles;
    int spans;  // work per tile and head: its pieces one by one, or 1 for all

    Cut(const BatchView& batch, int s, int group) {
        rows = (batch.starts[s + 1] - batch.starts[s]) * group;
        tiles = count_chunks(rows, kTileQueries);
        spans = tiles <= kSplitTiles ? count_chunks(batch.context_lens[s], kPiece) : 1;
    }
    // Floats of one Part in scratch memory.
    size_t part(size_t stride) const {
        return round_up(static_cast<size_t>(rows < kTileQueries ? rows : kTileQueries) * (stride + 2),
                        kLanes);
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
            tile.words[(static_cast<size_t>(row) * tile.stride + d + static_cast<size_t>(i)) / 4] =
                query_word(codes + i);
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
    Piece piece{
        {}, page_of(cache.format, cache.dim), index * kPiece, tile.limit[tile.rows - 1] - index * kPiece};
    if (piece.count <= 0) return false;
    if (piece.count > kPiece) piece.count = kPiece;
    const int32_t* table = job.batch->block_tables +
                           static_cast<size_t>(place.sequence) * static_cast<size_t>(job.batch->width) +
                           index * kPieceBlocks;
    for (int b = 0; b * kLanes < piece.count; ++b)
        piece.page[b] =
            pages_of(cache, job.layer, table[b]) + static_cast<size_t>(place.kv_head) * piece.layout.bytes;
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
    run_piece(job, place, tile, place.span,
              part_at(place.parts + static_cast<size_t>(place.span) * size, tile));
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
        return {s,
                tile % kv_heads,
                (cut.tiles - 1 - tile / kv_heads) * kTileQueries,
                at % spans,
                spans,
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
