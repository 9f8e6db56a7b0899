// One row of logits to one token: bias, bans, mask, penalties, temperature, top_k, top_p, min_p, inverse of
// the cumulative sum.
//
// In: logits [L, V] and the arguments of each row. Out: token ids, or kSampleNaN / kSampleEmpty. Works in
// double, row by row as in backend/reference.py, and copies and sorts no more of the vocabulary than the answer
// needs.
// Compiled once for all ISAs.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "layout.h"
#include "ops.h"
#include "pool.h"

namespace deepfast {
namespace {

constexpr int kBlock = 64;     // logits that share an upper bound: most blocks hold none of the largest
constexpr int kFirst = 64;     // ranked first, by one scan with a heap; whole blocks
constexpr int kSecond = 4096;  // ranked next, by selection; after that everything

int blocks_of(int valid) { return count_chunks(valid, kBlock); }

bool in_range(int32_t id, int valid) { return id >= 0 && id < valid; }

// One row of logits, adjusted in double; a block of it is copied when somebody first looks inside.
class Row {
  public:
    Row(const float* values, int valid, const uint8_t* mask, char* memory)
        : values_(values), mask_(mask), valid_(valid) {
        const auto v = static_cast<size_t>(valid), b = static_cast<size_t>(blocks_of(valid));
        logits_ = reinterpret_cast<double*>(memory);
        bounds_ = logits_ + v;
        order = reinterpret_cast<int32_t*>(bounds_ + b);
        counted = reinterpret_cast<uint8_t*>(order + v);
        copied_ = counted + v;
        memset(copied_, 0, b);
    }

    static size_t bytes(int valid) {
        const auto v = static_cast<size_t>(valid), b = static_cast<size_t>(blocks_of(valid));
        return round_up(v * (sizeof(double) + sizeof(int32_t) + 1) + b * (sizeof(double) + 1), 64);
    }

    int valid() const { return valid_; }

    // Finds the bounds of all blocks; false when a logit is NaN or +infinity.
    bool scan() {
        bool good = true;
        for (int b = 0; b < blocks_of(valid_); ++b) {
            const Span span = span_of(b, kBlock, valid_);
            float top = -INFINITY;
            good &= scan_block(values_ + span.first, span.last - span.first, top);
            bounds_[b] = top;
        }
        return good;
    }

    double at(int32_t id) {
        if (!copied_[id / kBlock]) copy(id / kBlock);
        return logits_[id];
    }

    void set(int32_t id, double logit) {
        if (!copied_[id / kBlock]) copy(id / kBlock);
        logits_[id] = logit;
        bounds_[id / kBlock] = std::max(bounds_[id / kBlock], logit);
    }

    // All logits, for who looks at most of them.
    const double* all() {
        for (int b = 0; b < blocks_of(valid_); ++b)
            if (!copied_[b]) copy(b);
        return logits_;
    }

    // f(id) for ids from `first` on, a multiple of a block, except in blocks that hold nothing above least().
    template <class Least, class F>
    void above(int32_t first, const Least& least, const F& f) {
        for (int b = first / kBlock; b < blocks_of(valid_); ++b) {
            if (bounds_[b] <= least()) continue;
            const Span span = span_of(b, kBlock, valid_);
            for (int32_t id = span.first; id < span.last; ++id) f(id);
        }
    }

    int32_t* order;    // [V] ids, the first `ranked` of them by descending logit, ties by id
    uint8_t* counted;  // [V] marks of the penalties

  private:
    // Over integers in the order of the floats: such a loop is vectorised without any leave to reorder floats.
    static bool scan_block(const float* values, int count, float& bound) {
        auto in_order = [](int32_t bits) { return bits ^ (bits >> 31 & INT32_MAX); };  // its own inverse
        int32_t high = INT32_MIN, low = INT32_MAX, bits;
        for (int i = 0; i < count; ++i) {
            memcpy(&bits, values + i, sizeof bits);
            high = std::max(high, in_order(bits));
            low = std::min(low, in_order(bits));
        }
        bits = in_order(high);
        memcpy(&bound, &bits, sizeof bits);
        constexpr int32_t kInfinity = 0x7f800000;  // NaN lies beyond it, on either side
        return high < kInfinity && low >= ~kInfinity;
    }

    void copy(int b) {
        const Span span = span_of(b, kBlock, valid_);
        for (int i = span.first; i < span.last; ++i) logits_[i] = values_[i];
        if (mask_)
            for (int i = span.first; i < span.last; ++i)
                if (!(mask_[i / 8] >> (i % 8) & 1)) logits_[i] = -INFINITY;
        copied_[b] = 1;
    }

    const float* values_;
    const uint8_t* mask_;
    int valid_;
    double* logits_;   // [V]
    double* bounds_;   // [V / 64] no logit of the block is larger
    uint8_t* copied_;  // [V / 64]
};

void penalise_repetition(const int32_t* ids, int count, double penalty, Row& row) {
    for (int i = 0; i < count; ++i) {
        if (!in_range(ids[i], row.valid()) || row.counted[ids[i]]) continue;
        row.counted[ids[i]] = 1;
        const double x = row.at(ids[i]);
        row.set(ids[i], x > 0 ? x / penalty : x * penalty);
    }
}

void adjust(const SampleRow& a, Row& row) {
    const auto marks = static_cast<size_t>(row.valid());
    for (int i = 0; i < a.num_bias; ++i) {
        const auto& [id, more] = a.bias[i];
        if (in_range(id, row.valid())) row.set(id, row.at(id) + more);
    }
    for (int i = 0; i < a.num_banned; ++i)
        if (in_range(a.banned_ids[i], row.valid())) row.set(a.banned_ids[i], -INFINITY);
    if (a.repetition_penalty != 1.0) {
        memset(row.counted, 0, marks);
        penalise_repetition(a.prompt_ids, a.num_prompt, a.repetition_penalty, row);
        penalise_repetition(a.output_ids, a.num_output, a.repetition_penalty, row);
    }
    if (a.frequency_penalty == 0.0 && a.presence_penalty == 0.0) return;
    memset(row.counted, 0, marks);
    for (int i = 0; i < a.num_output; ++i) {
        const int32_t id = a.output_ids[i];
        if (in_range(id, row.valid())) row.set(id, row.at(id) - a.frequency_penalty);
    }
    for (int i = 0; i < a.num_output; ++i) {
        const int32_t id = a.output_ids[i];
        if (!in_range(id, row.valid()) || row.counted[id]) continue;
        row.counted[id] = 1;
        row.set(id, row.at(id) - a.presence_penalty);
    }
}

// Ids by descending logit, as far as they have been asked for.
class Ranking {
  public:
    explicit Ranking(Row& row) : row_(row) {}

    int32_t at(int i) {
        while (i >= ranked_) extend();
        return row_.order[i];
    }

  private:
    struct Before {
        const double* logits;
        bool operator()(int32_t a, int32_t b) const {
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        }
    };

    // A heap of the best so far, its worst on top.
    void rank_first() {
        int32_t* order = row_.order;
        auto before = [&](int32_t a, int32_t b) {
            const double x = row_.at(a), y = row_.at(b);
            return x != y ? x > y : a < b;
        };
        for (int32_t i = 0; i < kFirst; ++i) order[i] = i;
        std::make_heap(order, order + kFirst, before);
        double worst = row_.at(order[0]);
        row_.above(
            kFirst, [&] { return worst; },
            [&](int32_t id) {
                if (row_.at(id) <= worst) return;
                std::pop_heap(order, order + kFirst, before);
                order[kFirst - 1] = id;
                std::push_heap(order, order + kFirst, before);
                worst = row_.at(order[0]);
            });
        std::sort_heap(order, order + kFirst, before);
        ranked_ = kFirst;
    }

    void extend() {
        const int valid = row_.valid();
        if (ranked_ == 0 && valid > kFirst) return rank_first();
        const Before before{row_.all()};
        int32_t* order = row_.order;
        const int count = ranked_ < kSecond && valid > 2 * kSecond ? kSecond : valid;
        for (int32_t i = 0; i < valid; ++i) order[i] = i;
        if (count < valid) std::nth_element(order, order + count, order + valid, before);
        std::sort(order, order + count, before);
        ranked_ = count;
    }

    Row& row_;
    int ranked_ = 0;
};

int32_t largest(Row& row) {
    int32_t best = 0;
    row.above(
        0, [&] { return row.at(best); },
        [&](int32_t id) {
            if (row.at(id) > row.at(best)) best = id;
        });
    return best;
}

// Draws from the `count` most likely tokens at args.uniform.
int32_t draw(const SampleRow& a, Row& row, Ranking& ranking) {
    const int valid = row.valid(), count = a.top_k > 0 && a.top_k < valid ? a.top_k : valid;
    const double top = row.at(ranking.at(0)) / a.temperature;
    auto weight = [&](int32_t id) { return exp(row.at(id) / a.temperature - top); };
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
        if (row.at(id) == -INFINITY) break;
        last = id;
        reached += weight(id) / all;
        if (reached > a.uniform * total) break;
    }
    return last;
}

int32_t sample_row(const SampleRow& a, Row& row) {
    if (!row.scan()) return kSampleNaN;
    adjust(a, row);
    Ranking ranking(row);
    const int32_t best = a.temperature == 0.0 ? largest(row) : ranking.at(0);
    if (row.at(best) == -INFINITY) return kSampleEmpty;
    return a.temperature == 0.0 ? best : draw(a, row, ranking);
}

}  // namespace

size_t sample_scratch(const Pool& pool, int valid) {
    return Row::bytes(valid) * static_cast<size_t>(pool.threads());
}

void sample(Pool& pool, const float* logits, int rows, int vocab, int valid, const SampleRow* args,
            int32_t* tokens, void* scratch) {
    pool.each(rows, [&](int i, int worker) {
        char* memory = static_cast<char*>(scratch) + static_cast<size_t>(worker) * Row::bytes(valid);
        Row row(logits + static_cast<size_t>(i) * static_cast<size_t>(vocab), valid, args[i].mask, memory);
        tokens[i] = sample_row(args[i], row);
    });
}

}  // namespace deepfast
