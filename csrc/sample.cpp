// One row of logits to one token: bias, bans, mask, penalties, temperature, top_k, top_p, min_p, inverse of
// the cumulative sum.
//
// In: logits [L, V] and the arguments of each row. Out: token ids, or kSampleNaN / kSampleEmpty. Works in
// double, row by row as in backend/reference.py, and sorts no more of the vocabulary than the answer needs.
// Compiled once for all ISAs.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "ops.h"
#include "pool.h"

namespace deepfast {
namespace {

constexpr int kFirst = 64;     // ranked first, by one scan with a heap
constexpr int kSecond = 4096;  // ranked next, by selection; after that everything

struct Memory {
    double* logits;    // [V] adjusted
    int32_t* order;    // [V] ids, the first `ranked` of them by descending logit, ties by id
    uint8_t* counted;  // [V] marks of the penalties
};

size_t memory_bytes(int valid) {
    const auto v = static_cast<size_t>(valid);
    return (v * (sizeof(double) + sizeof(int32_t) + 1) + 127) / 64 * 64;
}

Memory memory_at(char* base, int valid) {
    auto* logits = reinterpret_cast<double*>(base);
    auto* order = reinterpret_cast<int32_t*>(logits + valid);
    return {logits, order, reinterpret_cast<uint8_t*>(order + valid)};
}

bool in_range(int32_t id, int valid) { return id >= 0 && id < valid; }

// Copies the logits; false when one is NaN or +infinity.
bool copy_logits(const float* row, int valid, double* logits) {
    int bad = 0;
    for (int i = 0; i < valid; ++i) {
        logits[i] = row[i];
        bad |= row[i] < INFINITY ? 0 : 1;
    }
    return bad == 0;
}

void penalise_repetition(const int32_t* ids, int count, double penalty, int valid, const Memory& m) {
    for (int i = 0; i < count; ++i) {
        if (!in_range(ids[i], valid) || m.counted[ids[i]]) continue;
        m.counted[ids[i]] = 1;
        double& x = m.logits[ids[i]];
        x = x > 0 ? x / penalty : x * penalty;
    }
}

// Logits whose bit is not set become -infinity. Adds, so that a mixed byte costs no wrong guesses.
void apply_mask(const uint8_t* mask, int valid, double* logits) {
    constexpr double kAdded[2] = {-INFINITY, 0.0};
    const int bytes = valid / 8;
    for (int byte = 0; byte < bytes; ++byte) {
        const int bits = mask[byte];
        if (bits == 255) continue;
        for (int i = 0; i < 8; ++i) logits[8 * byte + i] += kAdded[bits >> i & 1];
    }
    for (int i = 8 * bytes; i < valid; ++i) logits[i] += kAdded[mask[bytes] >> (i & 7) & 1];
}

void adjust(const SampleRow& a, int valid, const Memory& m) {
    for (int i = 0; i < a.num_bias; ++i)
        if (in_range(a.bias[i].first, valid)) m.logits[a.bias[i].first] += a.bias[i].second;
    for (int i = 0; i < a.num_banned; ++i)
        if (in_range(a.banned_ids[i], valid)) m.logits[a.banned_ids[i]] = -INFINITY;
    if (a.mask) apply_mask(a.mask, valid, m.logits);
    if (a.repetition_penalty != 1.0) {
        memset(m.counted, 0, static_cast<size_t>(valid));
        penalise_repetition(a.prompt_ids, a.num_prompt, a.repetition_penalty, valid, m);
        penalise_repetition(a.output_ids, a.num_output, a.repetition_penalty, valid, m);
    }
    if (a.frequency_penalty == 0.0 && a.presence_penalty == 0.0) return;
    memset(m.counted, 0, static_cast<size_t>(valid));
    for (int i = 0; i < a.num_output; ++i)
        if (in_range(a.output_ids[i], valid)) m.logits[a.output_ids[i]] -= a.frequency_penalty;
    for (int i = 0; i < a.num_output; ++i) {
        const int32_t id = a.output_ids[i];
        if (!in_range(id, valid) || m.counted[id]) continue;
        m.counted[id] = 1;
        m.logits[id] -= a.presence_penalty;
    }
}

// Ids by descending logit, as far as they have been asked for.
class Ranking {
  public:
    Ranking(const Memory& m, int valid) : m_(m), valid_(valid) {}

    int32_t at(int i) {
        while (i >= ranked_) extend();
        return m_.order[i];
    }

  private:
    struct Before {
        const double* logits;
        bool operator()(int32_t a, int32_t b) const {
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        }
    };

    void extend() {
        const Before before{m_.logits};
        int32_t* order = m_.order;
        if (ranked_ == 0 && valid_ > kFirst) {  // a heap of the best so far, its worst on top
            for (int32_t i = 0; i < kFirst; ++i) order[i] = i;
            std::make_heap(order, order + kFirst, before);
            double worst = m_.logits[order[0]];
            for (int32_t i = kFirst; i < valid_; ++i) {
                if (m_.logits[i] <= worst) continue;
                std::pop_heap(order, order + kFirst, before);
                order[kFirst - 1] = i;
                std::push_heap(order, order + kFirst, before);
                worst = m_.logits[order[0]];
            }
            std::sort_heap(order, order + kFirst, before);
            ranked_ = kFirst;
            return;
        }
        const int count = ranked_ < kSecond && valid_ > 2 * kSecond ? kSecond : valid_;
        for (int32_t i = 0; i < valid_; ++i) order[i] = i;
        if (count < valid_) std::nth_element(order, order + count, order + valid_, before);
        std::sort(order, order + count, before);
        ranked_ = count;
    }

    Memory m_;
    int valid_;
    int ranked_ = 0;
};

int32_t largest(const double* logits, int valid) {
    int32_t best = 0;
    for (int32_t i = 1; i < valid; ++i)
        if (logits[i] > logits[best]) best = i;
    return best;
}

// Draws from the `count` most likely tokens at args.uniform.
int32_t draw(const SampleRow& a, int count, int valid, Ranking& ranking, const double* logits) {
    const double top = logits[ranking.at(0)] / a.temperature;
    auto weight = [&](int32_t id) { return exp(logits[id] / a.temperature - top); };
    double all = 0.0;
    if (count < valid) {
        for (int i = 0; i < count; ++i) all += weight(ranking.at(i));
    } else {
        for (int32_t i = 0; i < valid; ++i) all += weight(i);
    }
    const double first = 1.0 / all;
    const bool cut = a.top_p < 1.0 || a.min_p > 0.0;
    int kept = count;
    double total = 1.0, before = 0.0;
    if (cut) {
        total = 0.0;
        for (int i = 0; i < count; ++i) {
            const double share = weight(ranking.at(i)) / all;
            const bool keep =
                i == 0 || ((a.top_p >= 1.0 || before < a.top_p) && share >= a.min_p * first && share > 0.0);
            if (!keep) {
                kept = i;
                break;
            }
            total += share;
            before += share;
        }
    }
    double reached = 0.0;
    int32_t last = ranking.at(0);
    for (int i = 0; i < kept; ++i) {
        const int32_t id = ranking.at(i);
        if (logits[id] == -INFINITY) break;
        last = id;
        reached += weight(id) / all;
        if (reached > a.uniform * total) break;
    }
    return last;
}

int32_t sample_row(const float* row, int valid, const SampleRow& a, const Memory& m) {
    if (!copy_logits(row, valid, m.logits)) return kSampleNaN;
    adjust(a, valid, m);
    Ranking ranking(m, valid);
    const int32_t best = a.temperature == 0.0 ? largest(m.logits, valid) : ranking.at(0);
    if (m.logits[best] == -INFINITY) return kSampleEmpty;
    if (a.temperature == 0.0) return best;
    const int count = a.top_k > 0 && a.top_k < valid ? a.top_k : valid;
    return draw(a, count, valid, ranking, m.logits);
}

}  // namespace

size_t sample_scratch(const Pool& pool, int valid) {
    return memory_bytes(valid) * static_cast<size_t>(pool.threads());
}

void sample(Pool& pool, const float* logits, int rows, int vocab, int valid, const SampleRow* args,
            int32_t* tokens, void* scratch) {
    const size_t bytes = memory_bytes(valid);
    pool.each(rows, [&](int row, int worker) {
        const Memory m = memory_at(static_cast<char*>(scratch) + static_cast<size_t>(worker) * bytes, valid);
        tokens[row] =
            sample_row(logits + static_cast<size_t>(row) * static_cast<size_t>(vocab), valid, args[row], m);
    });
}

}  // namespace deepfast
