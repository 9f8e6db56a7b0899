// The door between Python and the kernels: the only source that includes nanobind (with its header
// bind_types.h).
//
// For each op: check dtype, shape, contiguity and every index, drop the GIL, call. Results are Arrays of ours,
// and so are activations; a float32 numpy array in their place is copied, any other is refused. A refused argument is a TypeError (wrong kind of array) or a ValueError (wrong shape or index)
// that names the numbers.
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "bind_types.h"

namespace {

void check_piece(const Matrix& w, const Out<uint8_t, 1>& buffer, int64_t expert, int64_t first,
                 size_t count) {
    if (buffer.data() != w.packed.data) fail("the buffer is not the one of the matrix");
    in_range("expert", expert, 0, w.packed.experts);
    in_range("first", first, 0, w.packed.rows);
    const auto rows = static_cast<int64_t>(count), end = first + rows;
    in_range("rows packed", rows, 1, w.packed.rows - first + 1);
    if (first % kLanes || (rows % kLanes && end != w.packed.rows))
        fail("rows " + std::to_string(first) + ":" + std::to_string(end) + "; expected whole panels of 16");
}

void pack(Core& core, const Matrix& w, Out<uint8_t, 1> buffer, int64_t expert, int64_t first,
          In<float, 2> values) {
    check_piece(w, buffer, expert, first, values.shape(0));
    same("columns", values.shape(1), static_cast<size_t>(w.packed.columns));
    if (has_steps(w.packed.format) || has_minimums(w.packed.format))
        fail("formats of two levels or with minimums hold given codes only; use pack_codes");
    run(core, 0, [&](void*) {
        core.ops->pack(core.pool, values.data(), static_cast<int>(first), static_cast<int>(values.shape(0)),
                       w.packed, static_cast<int>(expert));
    });
}

// The numbers beside the codes: there where the format has them and nowhere else, so many for each row.
template <class T>
const T* checked_beside(const std::optional<In<T, 2>>& given, bool wanted, const char* what, size_t rows,
                        size_t columns) {
    if (given.has_value() != wanted)
        fail(std::string(what) + (wanted ? " are missing in this format" : " do not belong to this format"));
    if (!given) return nullptr;
    same((std::string("rows of ") + what).c_str(), given->shape(0), rows);
    same((std::string("columns of ") + what).c_str(), given->shape(1), columns);
    return given->data();
}

void pack_codes(Core& core, const Matrix& w, Out<uint8_t, 1> buffer, int64_t expert, int64_t first,
                In<int8_t, 2> codes, In<uint16_t, 2> scales, std::optional<In<uint16_t, 2>> minimums,
                std::optional<In<int8_t, 2>> steps, std::optional<In<int8_t, 2>> lows) {
    check_piece(w, buffer, expert, first, codes.shape(0));
    const Format format = w.packed.format;
    if (!is_grouped(format)) fail("codes do not go into f32 and bf16");
    same("columns of codes", codes.shape(1), static_cast<size_t>(w.packed.columns));
    const size_t rows = codes.shape(0), spans = static_cast<size_t>(layout_of(w.packed).spans);
    const size_t part = static_cast<size_t>(kGroup / parts_of(format)), parts = (codes.shape(1) + part - 1) / part;
    const bool two = has_steps(format), shifted = has_minimums(format);
    same("rows of scales", scales.shape(0), rows);
    same("columns of scales", scales.shape(1), spans);
    const Codes given{codes.data(), scales.data(), checked_beside(minimums, shifted, "minimums", rows, spans),
                      checked_beside(steps, two, "steps", rows, parts),
                      checked_beside(lows, two && shifted, "lows", rows, parts)};
    int found = 0;
    for (size_t i = 0; i < codes.size() && has_nibbles(format); ++i) found |= codes.data()[i];
    if (found & ~15) fail("a code of 4 bits is not in 0..15");
    run(core, 0, [&](void*) {
        core.ops->pack_codes(core.pool, given, static_cast<int>(first), static_cast<int>(rows), w.packed,
                             static_cast<int>(expert));
    });
}

Array embed(Core& core, In<int32_t, 1> ids, const Matrix& table, int64_t expert) {
    in_range("expert", expert, 0, table.packed.experts);
    for (size_t i = 0; i < ids.size(); ++i) in_range("token id", ids.data()[i], 0, table.packed.rows);
    Array y(ids.size(), static_cast<size_t>(table.packed.columns));
    run(core, 0, [&](void*) {
        core.ops->embed(core.pool, table.packed, static_cast<int>(expert), ids.data(), rows_of(ids.size()),
                        y.data());
    });
    return y;
}

Array take(const Array& x, In<int32_t, 1> rows) {
    x.expect(2, "x");
    Array y(rows.size(), x.shape(1));
    for (size_t i = 0; i < rows.size(); ++i) {
        in_range("row", rows.data()[i], 0, static_cast<int64_t>(x.shape(0)));
        const float* row = x.data() + static_cast<size_t>(rows.data()[i]) * x.shape(1);
        std::copy_n(row, x.shape(1), y.data() + i * x.shape(1));
    }
    return y;
}

Array linear(Core& core, const Array& x, const Matrix& w, const Array* bias) {
    x.expect(2, "x");
    const int n = rows_of(x.shape(0));
    same("experts", static_cast<size_t>(w.packed.experts), 1);
    same("columns of x", x.shape(1), static_cast<size_t>(w.packed.columns));
    if (bias) same("entries of bias", bias->size(), static_cast<size_t>(w.packed.rows));
    Array y(x.shape(0), static_cast<size_t>(w.packed.rows));
    if (n == 0) return y;
    run(core, core.ops->linear_scratch(w.packed, n), [&](void* scratch) {
        core.ops->linear(core.pool, x.data(), n, w.packed, bias ? bias->data() : nullptr, y.data(), scratch);
    });
    return y;
}

Array mlp(Core& core, const Array& x, const Matrix& gate_up, const Array* gate_up_bias, const Matrix& down,
          const Array* down_bias) {
    const Packed &a = gate_up.packed, &b = down.packed;
    x.expect(2, "x");
    const int n = rows_of(x.shape(0));
    same("experts", static_cast<size_t>(a.experts) * static_cast<size_t>(b.experts), 1);
    same("columns of x", x.shape(1), static_cast<size_t>(a.columns));
    same("rows of gate_up", static_cast<size_t>(a.rows), 2 * static_cast<size_t>(b.columns));
    if (gate_up_bias) same("entries of the bias", gate_up_bias->size(), static_cast<size_t>(a.rows));
    if (down_bias) same("entries of the bias", down_bias->size(), static_cast<size_t>(b.rows));
    Array y(x.shape(0), static_cast<size_t>(b.rows));
    if (n == 0) return y;
    run(core, core.ops->mlp_scratch(a, b, n), [&](void* scratch) {
        core.ops->mlp(core.pool, x.data(), n, a, gate_up_bias ? gate_up_bias->data() : nullptr, b,
                      down_bias ? down_bias->data() : nullptr, y.data(), scratch);
    });
    return y;
}

Array moe(Core& core, const Array& x, const Array& router, const Matrix& gate_up, const Matrix& down,
          int64_t top_k, bool normalise) {
    const Packed &a = gate_up.packed, &b = down.packed;
    x.expect(2, "x");
    router.expect(2, "router");
    const int n = rows_of(x.shape(0));
    same("columns of x", x.shape(1), static_cast<size_t>(a.columns));
    same("rows of router", router.shape(0), x.shape(0));
    same("columns of router", router.shape(1), static_cast<size_t>(a.experts));
    same("experts of down", static_cast<size_t>(b.experts), static_cast<size_t>(a.experts));
    same("rows of gate_up", static_cast<size_t>(a.rows), 2 * static_cast<size_t>(b.columns));
    same("rows of down", static_cast<size_t>(b.rows), x.shape(1));
    in_range("top_k", top_k, 1, int64_t{a.experts} + 1);
    in_range("rows times top_k", int64_t{n} * top_k, 0, kMaxSize);
    Array y(x.shape(0), x.shape(1));
    if (n == 0) return y;
    const int k = static_cast<int>(top_k);
    run(core, core.ops->moe_scratch(a, b, n, k), [&](void* scratch) {
        core.ops->moe(core.pool, x.data(), router.data(), n, a, b, k, normalise, y.data(), scratch);
    });
    return y;
}

Array rms_norm(Core& core, const Array& x, const Array& weight, float eps) {
    x.expect(2, "x");
    same("entries of weight", weight.size(), x.shape(1));
    Array y(x.shape(0), x.shape(1));
    run(core, 0, [&](void*) {
        core.ops->rms_norm(core.pool, x.data(), nullptr, weight.data(), eps, rows_of(x.shape(0)),
                           rows_of(x.shape(1)), nullptr, y.data());
    });
    return y;
}

std::pair<Array, Array> add_rms_norm(Core& core, const Array& x, const Array& more, const Array& weight,
                                     float eps) {
    x.expect(2, "x");
    more.expect(2, "y");
    same("rows of y", more.shape(0), x.shape(0));
    same("columns of y", more.shape(1), x.shape(1));
    same("entries of weight", weight.size(), x.shape(1));
    Array total(x.shape(0), x.shape(1)), y(x.shape(0), x.shape(1));
    run(core, 0, [&](void*) {
        core.ops->rms_norm(core.pool, x.data(), more.data(), weight.data(), eps, rows_of(x.shape(0)),
                           rows_of(x.shape(1)), total.data(), y.data());
    });
    return {std::move(total), std::move(y)};
}

void check_cache(const KVCache& cache, int64_t layer, const Batch& batch, size_t rows) {
    in_range("layer", layer, 0, cache.cache.layers);
    in_range("block id", batch.max_block, 0, cache.cache.blocks);
    same("rows of the batch", static_cast<size_t>(batch.view.rows), rows);
}

// How many heads of the cache's width `columns` holds.
size_t heads_in(const char* what, size_t columns, const KVCache& cache) {
    const auto dim = static_cast<size_t>(cache.cache.dim);
    if (columns % dim)
        fail(std::string(what) + "=" + std::to_string(columns) + "; expected heads of " +
             std::to_string(dim));
    return columns / dim;
}

int check_heads(size_t heads, const KVCache& cache) {
    const auto groups = static_cast<size_t>(cache.cache.heads);
    if (heads == 0 || heads % groups || heads > 65536)
        fail("query heads=" + std::to_string(heads) + "; expected a multiple of " + std::to_string(groups) +
             " KV heads");
    return static_cast<int>(heads);
}

Array store_kv(Core& core, const Array& qkv, const Array* q_norm, const Array* k_norm, const Array& rope,
               float eps, KVCache& cache, int64_t layer, const Batch& batch) {
    qkv.expect(2, "qkv");
    rope.expect(3, "rope");
    check_cache(cache, layer, batch, qkv.shape(0));
    const size_t dim = static_cast<size_t>(cache.cache.dim);
    const size_t all = heads_in("columns of qkv", qkv.shape(1), cache);
    const size_t stored = 2 * static_cast<size_t>(cache.cache.heads);
    in_range("heads of qkv", static_cast<int64_t>(all), static_cast<int64_t>(stored) + 1, kMaxSize);
    in_range("position", batch.max_position, 0, static_cast<int64_t>(rope.shape(0)));
    same("rope.shape[1]", rope.shape(1), 2);
    same("rope.shape[2]", rope.shape(2), dim / 2);
    if ((q_norm != nullptr) != (k_norm != nullptr)) fail("norm weights come in pairs (q, k)");
    if (q_norm) same("entries of the q norm", q_norm->size(), dim);
    if (k_norm) same("entries of the k norm", k_norm->size(), dim);
    const int count = check_heads(all - stored, cache);
    Array q(qkv.shape(0), (all - stored) * dim);
    run(core, 0, [&](void*) {
        core.ops->store_kv(core.pool, qkv.data(), count, q_norm ? q_norm->data() : nullptr,
                           k_norm ? k_norm->data() : nullptr, eps, Rope{rope.data()}, cache.cache,
                           static_cast<int>(layer), batch.view, q.data());
    });
    return q;
}

Array attention(Core& core, const Array& q, const KVCache& cache, int64_t layer, const Batch& batch) {
    q.expect(2, "q");
    check_cache(cache, layer, batch, q.shape(0));
    const int heads = check_heads(heads_in("columns of q", q.shape(1), cache), cache);
    Array y(q.shape(0), q.shape(1));
    run(core, core.ops->attention_scratch(core.pool, heads, cache.cache, batch.view), [&](void* scratch) {
        core.ops->attention(core.pool, q.data(), heads, cache.cache, static_cast<int>(layer), batch.view,
                            y.data(), scratch);
    });
    return y;
}

// What Python says of one row: SampleArgs' eight numbers (temperature, top_k, top_p, min_p, uniform, presence,
// frequency and repetition penalty), its lists, and the mask.
using RowArgs = std::tuple<std::array<double, 8>, std::vector<std::pair<int32_t, double>>,
                           std::vector<int32_t>, std::vector<int32_t>, std::vector<int32_t>,
                           std::optional<nb::bytes>>;

SampleRow checked_row(const RowArgs& args, int64_t num_valid) {
    const auto& [v, bias, banned, prompt, output, mask] = args;
    for (const double number : v)
        if (!std::isfinite(number)) fail("a sampling parameter is NaN or infinite; expected a number");
    for (const auto& pair : bias)
        if (!(pair.second < INFINITY)) fail("a logit bias is NaN or infinite; expected a number");
    if (v[0] < 0.0) fail("temperature=" + std::to_string(v[0]) + "; expected at least 0");
    if (v[7] <= 0.0) fail("repetition_penalty=" + std::to_string(v[7]) + "; expected above 0");
    const auto top_k = static_cast<int64_t>(std::clamp(v[1], -1.0, 2e9));
    in_range("top_k", top_k, 0, kMaxSize);
    if (mask) in_range("bytes of a mask", int64_t(mask->size()), (num_valid + 31) / 32 * 4, kMaxSize);
    const auto count = [](const auto& list) { return static_cast<int32_t>(list.size()); };
    return SampleRow{v[0],
                     v[2],
                     v[3],
                     v[4],
                     v[5],
                     v[6],
                     v[7],
                     static_cast<int32_t>(top_k),
                     count(bias),
                     count(banned),
                     count(prompt),
                     count(output),
                     bias.data(),
                     banned.data(),
                     prompt.data(),
                     output.data(),
                     mask ? static_cast<const uint8_t*>(mask->data()) : nullptr};
}

std::vector<int32_t> sample_rows(Core& core, const Array& logits, int64_t num_valid,
                                 const std::vector<RowArgs>& rows) {
    logits.expect(2, "logits");
    same("rows of logits", logits.shape(0), rows.size());
    in_range("num_valid", num_valid, 1, static_cast<int64_t>(logits.shape(1)) + 1);
    std::vector<SampleRow> args;
    for (const RowArgs& row : rows) args.push_back(checked_row(row, num_valid));
    std::vector<int32_t> tokens(rows.size());
    const int valid = static_cast<int>(num_valid);
    run(core, sample_scratch(core.pool, valid), [&](void* scratch) {
        sample(core.pool, logits.data(), rows_of(rows.size()), rows_of(logits.shape(1)), valid, args.data(),
               tokens.data(), scratch);
    });
    return tokens;
}

// What numpy asks of an object that it can read in place.
nb::dict array_interface(const Array& a) {
    nb::list shape;
    for (size_t i = 0; i < a.dimensions(); ++i) shape.append(a.shape(i));
    nb::dict found;
    found["version"] = 3;
    found["typestr"] = "<f4";
    found["shape"] = nb::tuple(shape);
    found["data"] = nb::make_tuple(reinterpret_cast<uintptr_t>(a.data()), false);
    return found;
}

size_t probe_scratch(const Core& core) {
    return static_cast<size_t>(core.pool.threads()) * kLanes * sizeof(int32_t);
}

int64_t probe_dots(Core& core, int64_t chunks) {
    in_range("chunks", chunks, 1, kMaxSize);
    int64_t products = 0;
    run(core, probe_scratch(core), [&](void* sums) {
        products = core.ops->probe_dots(core.pool, static_cast<int>(chunks), static_cast<int32_t*>(sums));
    });
    return products;
}

void probe_read(Core& core, In<float, 1> x) {
    if (x.size() == 0 || x.size() % (1 << 18))
        fail("floats=" + std::to_string(x.size()) + "; expected a multiple of 262144");
    run(core, probe_scratch(core), [&](void* sums) {
        core.ops->probe_read(core.pool, x.data(), x.size(), static_cast<int32_t*>(sums));
    });
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const char* const* name = supported_isas(); *name; ++name) names.emplace_back(*name);
    return names;
}

}  // namespace

NB_MODULE(_C, m) {
    nb::set_leak_warnings(false);  // at exit the engine may still hold its core
    auto raw = [](const char* name) { return nb::arg(name).noconvert(); };
    m.def("supported_isas", &isas, "Instruction sets that run on this machine, best first.");
    m.def("take", &take, nb::arg("x"), raw("rows"), "Rows of x [N, D].");
    m.def("packed_bytes", &packed_bytes, nb::arg("format"), nb::arg("experts"), nb::arg("rows"),
          nb::arg("columns"), nb::arg("span") = 1, "Bytes of experts x [rows, columns] in a format.");
    nb::class_<Array>(m, "Array", "Float numbers in up to three dimensions, in memory of the core.")
        .def(nb::init<const In<float, 1>&>(), raw("values"))
        .def(nb::init<const In<float, 2>&>(), raw("values"))
        .def(nb::init<const In<float, 3>&>(), raw("values"))
        .def_prop_ro("__array_interface__", &array_interface);
    nb::implicitly_convertible<In<float, 1>, Array>();
    nb::implicitly_convertible<In<float, 2>, Array>();
    nb::implicitly_convertible<In<float, 3>, Array>();
    nb::class_<Matrix>(m, "Matrix", "A packed weight, experts x [rows, columns], over a buffer on 64 bytes.")
        .def(nb::init<In<uint8_t, 1>, const std::string&, int64_t, int64_t, int64_t, int64_t>(), raw("buffer"),
             nb::arg("format"), nb::arg("experts"), nb::arg("rows"), nb::arg("columns"), nb::arg("span") = 1);
    nb::class_<KVCache>(m, "KVCache", "Paged keys and values of all layers.")
        .def(nb::init<int64_t, int64_t, int64_t, int64_t, const std::string&>(), nb::arg("layers"),
             nb::arg("blocks"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("format"))
        .def("touch", &KVCache::touch, nb::arg("layer"), nb::arg("blocks"))
        .def_prop_ro("bytes", [](const KVCache& c) { return c.pages.size(); })
        .def_prop_ro("kv_heads", [](const KVCache& c) { return c.cache.heads; })
        .def_prop_ro("head_dim", [](const KVCache& c) { return c.cache.dim; });
    nb::class_<Batch>(m, "Batch", "A checked copy of a batch's integer arrays.")
        .def(nb::init<In<int32_t, 1>, In<int32_t, 1>, In<int32_t, 1>, In<int32_t, 2>>(), raw("positions"),
             raw("starts"), raw("context_lens"), raw("block_tables"));
    nb::class_<Core>(m, "Core", "The ops on a pool of threads, in the best (or the named) instruction set.")
        .def(nb::init<int, const std::string&>(), nb::arg("threads"), nb::arg("isa") = "")
        .def_prop_ro("isa", [](const Core& core) { return core.ops->name; })
        .def_prop_ro("threads", [](const Core& core) { return core.pool.threads(); })
        .def_prop_ro("busy", [](const Core& c) { return std::chrono::duration<double>(c.busy).count(); })
        .def("pack", &pack, nb::arg("w"), raw("buffer"), nb::arg("expert"), nb::arg("first"), raw("values"))
        .def("pack_codes", &pack_codes, nb::arg("w"), raw("buffer"), nb::arg("expert"), nb::arg("first"),
             raw("codes"), raw("scales"), raw("minimums").none() = nb::none(),
             raw("steps").none() = nb::none(), raw("lows").none() = nb::none())
        .def("embed", &embed, raw("ids"), nb::arg("table"), nb::arg("expert"))
        .def("linear", &linear, nb::arg("x"), nb::arg("w"), nb::arg("bias").none())
        .def("mlp", &mlp, nb::arg("x"), nb::arg("gate_up"), nb::arg("gate_up_bias").none(), nb::arg("down"),
             nb::arg("down_bias").none())
        .def("moe", &moe, nb::arg("x"), nb::arg("router"), nb::arg("gate_up"), nb::arg("down"),
             nb::arg("top_k"), nb::arg("normalise"))
        .def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("eps"))
        .def("add_rms_norm", &add_rms_norm, nb::arg("x"), nb::arg("y"), nb::arg("weight"), nb::arg("eps"))
        .def("store_kv", &store_kv, nb::arg("qkv"), nb::arg("q_norm").none(), nb::arg("k_norm").none(),
             nb::arg("rope"), nb::arg("eps"), nb::arg("cache"), nb::arg("layer"), nb::arg("batch"))
        .def("attention", &attention, nb::arg("q"), nb::arg("cache"), nb::arg("layer"), nb::arg("batch"))
        .def("probe_dots", &probe_dots, nb::arg("chunks"), "Int8 products done.")
        .def("probe_read", &probe_read, raw("x"))
        .def("sample", &sample_rows, nb::arg("logits"), nb::arg("num_valid"), nb::arg("rows"));
}
