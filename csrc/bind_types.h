// The native objects that Python holds (Array, Matrix, KVCache, Batch, Core) and the checks of their making. For
// bind.cpp alone.
//
// In: numpy arrays and plain numbers, none of them trusted. Out: views that the kernels may trust.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "layout.h"
#include "ops.h"
#include "pool.h"

namespace nb = nanobind;
using namespace deepfast;

namespace {

template <class T, size_t N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, size_t N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kMaxSize = int64_t{1} << 30;  // of any one dimension; products are computed in size_t

[[noreturn]] void fail(const std::string& text) { throw nb::value_error(text.c_str()); }

void require(bool ok, const char* what, int64_t got, const char* rule, int64_t limit) {
    if (!ok)
        fail(std::string(what) + "=" + std::to_string(got) + "; expected " + rule + " " +
             std::to_string(limit));
}
void same(const char* what, size_t got, size_t wanted) {
    require(got == wanted, what, static_cast<int64_t>(got), "exactly", static_cast<int64_t>(wanted));
}
void in_range(const char* what, int64_t got, int64_t low, int64_t end) {
    require(got >= low, what, got, "at least", low);
    require(got < end, what, got, "below", end);
}

int rows_of(size_t n) {
    in_range("rows", static_cast<int64_t>(n), 0, kMaxSize);
    return static_cast<int>(n);
}

constexpr const char* kFormats[] = {"f32",    "bf16", "q8",     "q4",        "q4_min",
                                    "q4_k",   "q4_k16", "q8_k", "q8_k16", "q8_k16_min"};

Format format_named(const std::string& name) {
    std::string all;
    for (size_t i = 0; i < std::size(kFormats); ++i) {
        if (name == kFormats[i]) return static_cast<Format>(i);
        all += std::string(i ? ", " : "") + kFormats[i];
    }
    fail("format '" + name + "' is unknown; expected one of " + all);
}

constexpr const char* kKVFormats[] = {"f32", "f16", "q8"};

KVFormat kv_format_named(const std::string& name) {
    for (int i = 0; i < 3; ++i)
        if (name == kKVFormats[i]) return static_cast<KVFormat>(i);
    fail("KV format '" + name + "' is unknown; expected f32, f16 or q8");
}

// Memory of whole cache lines, freed with its owner; zeroed lazily by the system when `zeroed`.
class Buffer {
  public:
    Buffer() = default;
    Buffer(size_t bytes, bool zeroed)
        : raw_(zeroed ? std::calloc(1, bytes + 64) : std::malloc(bytes + 64)), bytes_(bytes) {
        if (!raw_) throw std::bad_alloc();
        if (zeroed) use_huge_pages();
    }
    Buffer(Buffer&& o) noexcept : raw_(std::exchange(o.raw_, nullptr)), bytes_(o.bytes_) {}
    Buffer& operator=(Buffer&& o) noexcept {
        std::swap(raw_, o.raw_);
        std::swap(bytes_, o.bytes_);
        return *this;
    }
    ~Buffer() { std::free(raw_); }

    void* data() const {
        return raw_ ? reinterpret_cast<void*>(round_up(reinterpret_cast<uintptr_t>(raw_), 64)) : nullptr;
    }
    size_t size() const { return raw_ ? bytes_ : 0; }

  private:
    // A kilobyte here and one there: with pages of 4 KiB each would need its own entry of the TLB.
    void use_huge_pages() {
#ifdef __linux__
        const uintptr_t page = uintptr_t{1} << 21, at = reinterpret_cast<uintptr_t>(raw_);
        const uintptr_t first = round_up(at, page), last = (at + bytes_) / page * page;
        if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
    }

    void* raw_ = nullptr;
    size_t bytes_ = 0;
};

// Float numbers in one to three dimensions, row by row: made by an op, or copied from a numpy array. An object
// of our own, because a call that takes and returns numpy arrays costs several times as much.
class Array {
  public:
    Array(size_t rows, size_t columns) : Array(2, {rows, columns, 1}) {}
    explicit Array(const In<float, 1>& x) : Array(1, {x.shape(0), 1, 1}, x.data()) {}
    explicit Array(const In<float, 2>& x) : Array(2, {x.shape(0), x.shape(1), 1}, x.data()) {}
    explicit Array(const In<float, 3>& x) : Array(3, {x.shape(0), x.shape(1), x.shape(2)}, x.data()) {}

    float* data() { return static_cast<float*>(memory_.data()); }
    const float* data() const { return static_cast<const float*>(memory_.data()); }
    size_t dimensions() const { return dimensions_; }
    size_t shape(size_t i) const { return shape_[i]; }
    size_t size() const { return shape_[0] * shape_[1] * shape_[2]; }

    void expect(size_t dimensions, const char* what) const {
        if (dimensions_ != dimensions)
            fail(std::string(what) + " has " + std::to_string(dimensions_) + " dimensions; expected " +
                 std::to_string(dimensions));
    }

  private:
    using Shape = std::array<size_t, 3>;  // 1 beyond `dimensions`

    Array(size_t dimensions, Shape shape)
        : dimensions_(dimensions), shape_(shape), memory_(size() * sizeof(float), false) {}
    Array(size_t dimensions, Shape shape, const float* values) : Array(dimensions, shape) {
        std::copy_n(values, size(), data());
    }

    size_t dimensions_;
    Shape shape_;
    Buffer memory_;
};

// A packed weight over a buffer (and may have memory-mapped).
struct Matrix {
    In<uint8_t, 1> buffer;
    Packed packed;

    Matrix(In<uint8_t, 1> memory, const std::string& format, int64_t experts, int64_t rows, int64_t columns,
           int64_t span)
        : buffer(std::move(memory)), packed(checked(format, experts, rows, columns, span)) {
        packed.data = const_cast<uint8_t*>(buffer.data());
        same("bytes of a packed matrix", buffer.size(), bytes(packed));
        if (reinterpret_cast<uintptr_t>(packed.data) % 64 != 0)
            fail("a packed matrix must start on 64 bytes");
    }

    // A matrix without data.
    static Packed checked(const std::string& format, int64_t experts, int64_t rows, int64_t columns,
                          int64_t span) {
        const Format kind = format_named(format);
        const Packed packed{nullptr,
                            kind,
                            check(experts, "experts"),
                            check(rows, "rows"),
                            check(columns, "columns"),
                            check(span, "span")};
        if (!has_steps(kind) && span != 1) fail("span=" + std::to_string(span) + "; expected 1 with " + format);
        if (static_cast<double>(experts) * static_cast<double>(rows) * static_cast<double>(columns) > 1e15)
            fail("a matrix of " + std::to_string(experts) + " x " + std::to_string(rows) + " x " +
                 std::to_string(columns) + "; expected at most 10^15 weights");
        return packed;
    }
    static int32_t check(int64_t size, const char* what) {
        in_range(what, size, 1, kMaxSize);
        return static_cast<int32_t>(size);
    }
    static size_t bytes(const Packed& p) { return static_cast<size_t>(p.experts) * layout_of(p).bytes; }
};

size_t packed_bytes(const std::string& format, int64_t experts, int64_t rows, int64_t columns, int64_t span) {
    return Matrix::bytes(Matrix::checked(format, experts, rows, columns, span));
}

struct KVCache {
    Buffer pages;
    Cache cache;

    KVCache(int64_t layers, int64_t blocks, int64_t heads, int64_t dim, const std::string& format) {
        in_range("layers", layers, 1, 1 << 16);
        in_range("blocks", blocks, 1, kMaxSize);
        in_range("kv_heads", heads, 1, 1 << 16);
        in_range("head_dim", dim, 2, kMaxHeadDim + 1);
        if (dim % 2) fail("head_dim=" + std::to_string(dim) + "; expected an even number");
        cache = Cache{nullptr,
                      kv_format_named(format),
                      static_cast<int32_t>(layers),
                      static_cast<int32_t>(blocks),
                      static_cast<int32_t>(heads),
                      static_cast<int32_t>(dim)};
        const size_t page = page_of(cache.format, cache.dim).bytes;
        if (static_cast<double>(layers) * blocks * heads * page > 1e15) throw std::bad_alloc();
        pages = Buffer(static_cast<size_t>(layers * blocks * heads) * page, true);
        cache.pages = static_cast<uint8_t*>(pages.data());
    }

    // Writes back a byte of every 4 KiB of these blocks, so that the system gives memory now.
    void touch(int64_t layer, const std::vector<int64_t>& blocks) {
        in_range("layer", layer, 0, cache.layers);
        const size_t bytes = static_cast<size_t>(cache.heads) * page_of(cache.format, cache.dim).bytes;
        for (const int64_t block : blocks) in_range("block id", block, 0, cache.blocks);
        nb::gil_scoped_release release;
        for (const int64_t block : blocks) {
            volatile uint8_t* at = pages_of(cache, static_cast<int>(layer), static_cast<int>(block));
            for (size_t i = 0; i < bytes; i += 4096) at[i] = at[i];
        }
    }
};

// A checked copy of the integer arrays of backend.base.Batch, shared by all ops of one forward pass.
struct Batch {
    std::vector<int32_t> positions, sequence_of, starts, context_lens, block_tables;
    BatchView view{};
    int64_t max_position = 0, max_block = 0;

    Batch(In<int32_t, 1> pos, In<int32_t, 1> begin, In<int32_t, 1> lens, In<int32_t, 2> tables)
        : positions(pos.data(), pos.data() + pos.size()),
          starts(begin.data(), begin.data() + begin.size()),
          context_lens(lens.data(), lens.data() + lens.size()),
          block_tables(tables.data(), tables.data() + tables.size()) {
        const size_t s = context_lens.size(), n = positions.size();
        same("entries of starts", starts.size(), s + 1);
        same("rows of block_tables", tables.shape(0), s);
        if (s == 0 || n == 0) fail("the batch is empty; expected at least one row");
        same("starts[0]", static_cast<size_t>(starts[0]), 0);
        same("starts[-1]", static_cast<size_t>(starts[s]), n);
        for (size_t i = 0; i < s; ++i) check_sequence(i, tables.shape(1));
        view =
            BatchView{static_cast<int32_t>(n), static_cast<int32_t>(s), static_cast<int32_t>(tables.shape(1)),
                      positions.data(),        sequence_of.data(),      starts.data(),
                      context_lens.data(),     block_tables.data()};
    }

    void check_sequence(size_t s, size_t width) {
        const int64_t count = int64_t{starts[s + 1]} - starts[s], length = context_lens[s];
        in_range("rows of a sequence", count, 1, int64_t(positions.size()) - starts[s] + 1);
        in_range("context_lens", length, count, static_cast<int64_t>(width) * kLanes + 1);
        for (int64_t i = 0; i < count; ++i) {
            same("position", static_cast<size_t>(positions[static_cast<size_t>(starts[s] + i)]),
                 static_cast<size_t>(length - count + i));
            sequence_of.push_back(static_cast<int32_t>(s));
        }
        max_position = std::max(max_position, length - 1);
        for (int64_t b = 0; b < (length + kLanes - 1) / kLanes; ++b) {
            const int64_t id = block_tables[s * width + static_cast<size_t>(b)];
            in_range("block id", id, 0, kMaxSize);
            max_block = std::max(max_block, id);
        }
    }
};

using Clock = std::chrono::steady_clock;

// The kernels of one ISA, the threads they run on and the scratch memory they share.
struct Core {
    Pool pool;
    const Ops* ops;
    Buffer scratch;
    std::mutex mutex;
    Clock::duration busy{};  // spent inside ops

    Core(int threads, const std::string& isa) : pool(check_threads(threads)), ops(choose(isa)) {}

    static int check_threads(int threads) {
        in_range("threads", threads, 1, 4096);
        return threads;
    }
    static const Ops* choose(const std::string& isa) {
        const char* const* names = supported_isas();
        if (isa.empty()) return find_ops(names[0]);
        if (const Ops* found = find_ops(isa.c_str())) return found;
        std::string all;
        for (; *names; ++names) all += std::string(all.empty() ? "" : ", ") + *names;
        fail("instruction set '" + isa + "' does not run here; expected one of " + all);
    }
};

// Runs f(scratch) without the GIL, one op at a time on a core.
template <class F>
void run(Core& core, size_t scratch, const F& f) {
    nb::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(core.mutex);
    if (core.scratch.size() < scratch) {
        core.scratch = Buffer();
        core.scratch = Buffer(scratch, false);
    }
    const auto start = Clock::now();
    f(core.scratch.data());
    core.busy += Clock::now() - start;
}

}  // namespace
