// The whole kernel API: plain pointers and shapes, one table of functions per instruction set (ISA).
//
// In: row-major arrays, packed weights, the paged KV cache, a checked batch. Out: arrays of the caller.
// Letters: N rows of tokens, D hidden, H query heads, G KV heads, C head_dim, M x K a matrix, E experts, S
// sequences. A kernel trusts its arguments (bind.cpp checked them), never allocates, throws or logs; scratch
// memory is handed in, 64-byte aligned, as large as the matching *_scratch function says. It knows no Python
// and no model.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <utility>

namespace deepfast {

class Pool;

constexpr int kLanes = 16;  // rows of a panel, positions of a KV block: the lanes of one 512-bit register
constexpr int kGroup = 32;  // weights (and activations) that share a scale in q8 and q4
constexpr int kMaxHeadDim = 1024;

enum class Format : int32_t {
    f32 = 0,
    bf16 = 1,
    q8 = 2,
    q4 = 3,
    q4_min = 4,
    q4_k = 5,
    q4_k16 = 6,
    q8_k = 7,
    q8_k16 = 8,
    q8_k16_min = 9
};
enum class KVFormat : int32_t { f32 = 0, f16 = 1, q8 = 2 };

// E matrices [M, K], one after another, in panels of 16 rows (lane r = row r); M is padded to 16 with zero
// rows and, but for f32 and bf16, K to 32. P = M / 16, Q = K / 32 after padding. Each matrix starts on 64
// bytes and holds:
//   f32, bf16   values [P][K][16]
//   q8          codes  [P][Q][8][16][4] int8, k = 4 w + j for word w and byte j;      scales [P][Q][16] f16;
//               w = d q
//   q4          codes  [P][Q][4][16][4], word w: low nibble k = 8 w + j, high nibble k = 8 w + 4 + j;
//               scales [P][Q][16] f16; w = d (q - 8)
//   q4_min      as q4, then minimums [P][Q][16] f16; w = d q + m
// With "_k" there are two levels: S = Q / span (rounded up) scales d and minimums m in a row, and int8 steps s
// and lows l for each part of H = 1 (a whole group) or, with "16", H = 2 (half a group); w = (d s) q - m l
//   q4_k, q4_k16, q8_k, q8_k16_min
//               codes as q4 or q8, steps [P][Q][H][16], lows [P][Q][H][16], scales [P][S][16], minimums
//               [P][S][16]
//   q8_k16      the same without lows and minimums
// Little-endian, and the same for every ISA: files are written in it and mapped (model/packed.py). Whoever
// changes what a format of this picture is raises PACKED_LAYOUT in config.py, so that old files are refused.
struct Packed {
    uint8_t* data;
    Format format;
    int32_t experts;  // E
    int32_t rows;     // M
    int32_t columns;  // K
    int32_t span;     // groups that share a scale: 1 without "_k"
};

// Rows of a matrix that are quantised already; H and S as above. What a format lacks is null.
struct Codes {
    const int8_t* codes;       // [count, K] 8 bits: -128..127, 4 bits: 0..15
    const uint16_t* scales;    // [count, S] f16
    const uint16_t* minimums;  // [count, S] f16
    const int8_t* steps;       // [count, parts]: K / (32 / H), rounded up
    const int8_t* lows;        // [count, parts]
};

// Pages [layers][blocks][G]: the keys and values of one KV head at the 16 positions of one block. In a page:
//   f32, f16    keys [C][16], values [16][C]
//   q8          key codes [C / 4][16][4] int8, k = 4 w + j for word w and byte j; key scales [16] f16; value
//               scales [16] f16; value codes [16][C] int8; C padded to 4; x = scale * code
struct Cache {
    uint8_t* pages;
    KVFormat format;
    int32_t layers;
    int32_t blocks;
    int32_t heads;  // G
    int32_t dim;    // C
};

// One forward pass: sequence s owns rows starts[s]:starts[s+1], the last of its context_lens[s] positions.
struct BatchView {
    int32_t rows;                 // N
    int32_t sequences;            // S
    int32_t width;                // B: blocks per row of the table
    const int32_t* positions;     // [N]
    const int32_t* sequence_of;   // [N]
    const int32_t* starts;        // [S + 1]
    const int32_t* context_lens;  // [S]
    const int32_t* block_tables;  // [S, B]
};

struct Rope {
    const float* table;  // [positions, 2, C / 2]: cosines, then sines
};

// Weights to the packed layout. `first` is a multiple of 16 and so is `count` unless it ends the matrix.
using PackOp = void(Pool&, const float* w /*[count, K]*/, int first, int count, const Packed& out,
                    int expert);
using PackCodesOp = void(Pool&, const Codes& codes, int first, int count, const Packed& out, int expert);
using EmbedOp = void(Pool&, const Packed& table /*[V, D]*/, int expert, const int32_t* ids /*[N]*/, int n,
                     float* y /*[N, D]*/);

using LinearScratchOp = size_t(const Packed& w, int n);
using LinearOp = void(Pool&, const float* x /*[N, K]*/, int n, const Packed& w /*[M, K]*/,
                      const float* bias /*[M] or null*/, float* y /*[N, M]*/, void* scratch);

using MlpScratchOp = size_t(const Packed& gate_up, const Packed& down, int n);
using MlpOp = void(Pool&, const float* x /*[N, D]*/, int n, const Packed& gate_up /*[2F, D], gate first*/,
                   const float* gate_up_bias /*[2F] or null*/, const Packed& down /*[D, F]*/,
                   const float* down_bias /*[D] or null*/, float* y /*[N, D]*/, void* scratch);

using MoeScratchOp = size_t(const Packed& gate_up, const Packed& down, int n, int top_k);
using MoeOp = void(Pool&, const float* x /*[N, D]*/, const float* router /*[N, E] logits*/, int n,
                   const Packed& gate_up /*[E, 2F, D]*/, const Packed& down /*[E, D, F]*/, int top_k,
                   bool normalise, float* y /*[N, D]*/, void* scratch);

// total = x + more, y = total / sqrt(mean(total^2) + eps) * weight; without `more` and `total`: of x itself.
using RmsNormOp = void(Pool&, const float* x /*[N, D]*/, const float* more /*[N, D] or null*/,
                       const float* weight /*[D]*/, float eps, int n, int d, float* total /*[N, D] or null*/,
                       float* y /*[N, D]*/);

using StoreKvOp = void(Pool&, const float* qkv /*[N, (H + 2G) C]*/, int heads,
                       const float* q_norm /*[C] or null*/, const float* k_norm /*[C] or null*/, float eps,
                       Rope rope, const Cache& cache, int layer, const BatchView& batch,
                       float* q /*[N, H C]*/);

using AttentionScratchOp = size_t(const Pool&, int heads, const Cache& cache, const BatchView& batch);
using AttentionOp = void(Pool&, const float* q /*[N, H C]*/, int heads, const Cache& cache, int layer,
                         const BatchView& batch, float* y /*[N, H C]*/, void* scratch);

// What the machine allows, for a caller who takes the time. Each worker leaves its sums in sums[worker].
using ProbeDotsOp = int64_t(Pool&, int chunks, int32_t* sums /*[threads, 16]*/);  // int8 products done
using ProbeReadOp = void(Pool&, const float* x, size_t n /*floats: a multiple of 2^18*/,
                         int32_t* sums /*[threads, 16]*/);

struct Ops {
    const char* name;
    PackOp* pack;
    PackCodesOp* pack_codes;
    EmbedOp* embed;
    LinearScratchOp* linear_scratch;
    LinearOp* linear;
    MlpScratchOp* mlp_scratch;
    MlpOp* mlp;
    MoeScratchOp* moe_scratch;
    MoeOp* moe;
    RmsNormOp* rms_norm;
    StoreKvOp* store_kv;
    AttentionScratchOp* attention_scratch;
    AttentionOp* attention;
    ProbeDotsOp* probe_dots;
    ProbeReadOp* probe_read;
};

// The table of a named ISA, or null when this machine (or this build) has none of that name.
const Ops* find_ops(const char* name);
// Names of the ISAs that run here, best first; null after the last.
const char* const* supported_isas();

// How one row of logits becomes a token; the order of work is that of SampleArgs in backend/base.py.
struct SampleRow {
    double temperature, top_p, min_p, uniform;
    double presence_penalty, frequency_penalty, repetition_penalty;
    int32_t top_k;
    int32_t num_bias, num_banned, num_prompt, num_output;
    const std::pair<int32_t, double>* bias;  // [num_bias] id and what is added to its logit
    const int32_t* banned_ids;               // [num_banned]
    const int32_t* prompt_ids;               // [num_prompt]
    const int32_t* output_ids;               // [num_output]
    const uint8_t* mask;                     // [V / 8] bit t % 8 of byte t / 8: id t may be drawn; or null
};
constexpr int32_t kSampleNaN = -1;    // the row holds NaN
constexpr int32_t kSampleEmpty = -2;  // no token is left to draw from

size_t sample_scratch(const Pool&, int valid);
void sample(Pool&, const float* logits /*[L, V]*/, int rows, int vocab, int valid,
            const SampleRow* args /*[L]*/, int32_t* tokens /*[L]*/, void* scratch);

}  // namespace deepfast
