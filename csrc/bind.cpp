// The door between Python and the kernels: the only source that includes nanobind (with its header
// bind_types.h).
//
// For each op: check dtype, shape, contiguity and every index, drop the GIL, call. Arrays are never converted
// or copied. A refused argument is a TypeError (wrong kind of array) or a ValueError (wrong shape or index)
// that names the numbers.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>

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
    if (w.packed.format == Format::q4_min) fail("format q4_min holds given codes only; use pack_codes");
    run(core, 0, [&](void*) {
        core.ops->pack(core.pool, values.data(), static_cast<int>(first), static_cast<int>(values.shape(0)),
                       w.packed, static_cast<int>(expert));
    });
}

void pack_codes(Core& core, const Matrix& w, Out<uint8_t, 1> buffer, int64_t expert, int64_t first,
                In<int8_t, 2> codes, In<uint16_t, 2> scales, std::optional<In<uint16_t, 2>> minimums) {
    check_piece(w, buffer, expert, first, codes.shape(0));
    if (!is_grouped(w.packed.format)) fail("codes go into q8, q4 or q4_min only");
    const size_t groups = (static_cast<size_t>(w.packed.columns) + kGroup - 1) / kGroup;
    same("columns of codes", codes.shape(1), groups * kGroup);
    same("rows of scales", scales.shape(0), codes.shape(0));
    same("columns of scales", scales.shape(1), groups);
    if ((w.packed.format == Format::q4_min) != minimums.has_value())
        fail("minimums belong to q4_min, and only there");
    if (minimums) {
        same("rows of minimums", minimums->shape(0), codes.shape(0));
        same("columns of minimums", minimums->shape(1), groups);
    }
    const bool wide = w.packed.format == Format::q8;
    for (size_t i = 0; i < codes.size() && !wide; ++i) in_range("code", codes.data()[i], 0, 16);
    run(core, 0, [&](void*) {
        core.ops->pack_codes(core.pool, codes.data(), scales.data(), minimums ? minimums->data() : nullptr,
                             static_cast<int>(first), static_cast<int>(codes.shape(0)), w.packed,
                             static_cast<int>(expert));
    });
}

void embed(Core& core, In<int32_t, 1> ids, const Matrix& table, int64_t expert, Out<float, 2> y) {
    in_range("expert", expert, 0, table.packed.experts);
    same("rows of y", y.shape(0), ids.size());
    same("columns of y", y.shape(1), static_cast<size_t>(table.packed.columns));
    for (size_t i = 0; i < ids.size(); ++i) in_range("token id", ids.data()[i], 0, table.packed.rows);
    run(core, 0, [&](void*) {
        core.ops->embed(core.pool, table.packed, static_cast<int>(expert), ids.data(), rows_of(ids.size()),
                        y.data());
    });
}

void linear(Core& core, In<float, 2> x, const Matrix& w, std::optional<In<float, 1>> bias, Out<float, 2> y) {
    const int n = rows_of(x.shape(0));
    same("experts", static_cast<size_t>(w.packed.experts), 1);
    same("columns of x", x.shape(1), static_cast<size_t>(w.packed.columns));
    same("rows of y", y.shape(0), x.shape(0));
    same("columns of y", y.shape(1), static_cast<size_t>(w.packed.rows));
    if (bias) same("entries of bias", bias->size(), static_cast<size_t>(w.packed.rows));
    if (n == 0) return;
    run(core, core.ops->linear_scratch(w.packed, n), [&](void* scratch) {
        core.ops->linear(core.pool, x.data(), n, w.packed, bias ? bias->data() : nullptr, y.data(), scratch);
    });
}

void moe(Core& core, In<float, 2> x, In<float, 2> router, const Matrix& gate_up, const Matrix& down,
         int64_t top_k, bool normalise, Out<float, 2> y) {
    const Packed &a = gate_up.packed, &b = down.packed;
    const int n = rows_of(x.shape(0));
    same("columns of x", x.shape(1), static_cast<size_t>(a.columns));
    same("rows of router", router.shape(0), x.shape(0));
    same("columns of router", router.shape(1), static_cast<size_t>(a.experts));
    same("experts of down", static_cast<size_t>(b.experts), static_cast<size_t>(a.experts));
    same("rows of gate_up", static_cast<size_t>(a.rows), 2 * static_cast<size_t>(b.columns));
    same("rows of down", static_cast<size_t>(b.rows), x.shape(1));
    same("rows of y", y.shape(0), x.shape(0));
    same("columns of y", y.shape(1), x.shape(1));
    in_range("top_k", top_k, 1, int64_t{a.experts} + 1);
    in_range("rows times top_k", int64_t{n} * top_k, 0, kMaxSize);
    if (n == 0) return;
    const int k = static_cast<int>(top_k);
    run(core, core.ops->moe_scratch(a, b, n, k), [&](void* scratch) {
        core.ops->moe(core.pool, x.data(), router.data(), n, a, b, k, normalise, y.data(), scratch);
    });
}

void rms_norm(Core& core, In<float, 2> x, In<float, 1> weight, float eps, Out<float, 2> y) {
    same("entries of weight", weight.size(), x.shape(1));
    same("rows of y", y.shape(0), x.shape(0));
    same("columns of y", y.shape(1), x.shape(1));
    run(core, 0, [&](void*) {
        core.ops->rms_norm(core.pool, x.data(), weight.data(), eps, rows_of(x.shape(0)), rows_of(x.shape(1)),
                           y.data());
    });
}

void swiglu(Core& core, In<float, 2> gate_up, Out<float, 2> y) {
    same("rows of y", y.shape(0), gate_up.shape(0));
    same("columns of gate_up", gate_up.shape(1), 2 * y.shape(1));
    run(core, 0, [&](void*) {
        core.ops->swiglu(core.pool, gate_up.data(), rows_of(y.shape(0)), rows_of(y.shape(1)), y.data());
    });
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

void store_kv(Core& core, In<float, 2> qkv, std::optional<In<float, 1>> q_norm,
              std::optional<In<float, 1>> k_norm, In<float, 3> rope, float eps, KVCache& cache, int64_t layer,
              const Batch& batch, Out<float, 2> q) {
    check_cache(cache, layer, batch, qkv.shape(0));
    const size_t dim = static_cast<size_t>(cache.cache.dim);
    const size_t heads = heads_in("columns of q", q.shape(1), cache);
    same("columns of qkv", qkv.shape(1), (heads + 2 * static_cast<size_t>(cache.cache.heads)) * dim);
    same("rows of q", q.shape(0), qkv.shape(0));
    in_range("position", batch.max_position, 0, static_cast<int64_t>(rope.shape(0)));
    same("rope.shape[1]", rope.shape(1), 2);
    same("rope.shape[2]", rope.shape(2), dim / 2);
    if (q_norm.has_value() != k_norm.has_value()) fail("norm weights come in pairs (q, k)");
    if (q_norm) same("entries of the q norm", q_norm->size(), dim);
    if (k_norm) same("entries of the k norm", k_norm->size(), dim);
    const int count = check_heads(heads, cache);
    run(core, 0, [&](void*) {
        core.ops->store_kv(core.pool, qkv.data(), count, q_norm ? q_norm->data() : nullptr,
                           k_norm ? k_norm->data() : nullptr, eps, Rope{rope.data()}, cache.cache,
                           static_cast<int>(layer), batch.view, q.data());
    });
}

void attention(Core& core, In<float, 2> q, const KVCache& cache, int64_t layer, const Batch& batch,
               Out<float, 2> y) {
    check_cache(cache, layer, batch, q.shape(0));
    const int heads = check_heads(heads_in("columns of q", q.shape(1), cache), cache);
    same("rows of y", y.shape(0), q.shape(0));
    same("columns of y", y.shape(1), q.shape(1));
    run(core, core.ops->attention_scratch(core.pool, heads, cache.cache, batch.view), [&](void* scratch) {
        core.ops->attention(core.pool, q.data(), heads, cache.cache, static_cast<int>(layer), batch.view,
                            y.data(), scratch);
    });
}

// Lists of different lengths, end to end: list i is values[starts[i]:starts[i+1]].
struct Ragged {
    const int32_t* values;
    const int32_t* starts;

    Ragged(const In<int32_t, 1>& v, const In<int32_t, 1>& s, size_t lists)
        : values(v.data()), starts(s.data()) {
        same("entries of starts", s.size(), lists + 1);
        int64_t last = 0;
        for (size_t i = 0; i <= lists; ++i) {
            in_range("starts", starts[i], last, static_cast<int64_t>(v.size()) + 1);
            last = starts[i];
        }
    }
    const int32_t* at(size_t i) const { return values + starts[i]; }
    int32_t count(size_t i) const { return starts[i + 1] - starts[i]; }
};

// numbers [L, 8]: temperature, top_k, top_p, min_p, uniform, presence, frequency and repetition penalty.
void sample_rows(Core& core, In<float, 2> logits, int64_t num_valid, In<double, 2> numbers,
                 In<double, 1> bias_values, In<int32_t, 1> bias_ids, In<int32_t, 1> bias_starts,
                 In<int32_t, 1> banned, In<int32_t, 1> banned_starts, In<int32_t, 1> prompt,
                 In<int32_t, 1> prompt_starts, In<int32_t, 1> output, In<int32_t, 1> output_starts,
                 const std::vector<std::optional<nb::bytes>>& masks, Out<int32_t, 1> tokens) {
    const size_t rows = logits.shape(0);
    in_range("num_valid", num_valid, 1, static_cast<int64_t>(logits.shape(1)) + 1);
    same("rows of numbers", numbers.shape(0), rows);
    same("columns of numbers", numbers.shape(1), 8);
    same("entries of tokens", tokens.size(), rows);
    same("entries of bias_values", bias_values.size(), bias_ids.size());
    same("masks", masks.size(), rows);
    for (const auto& mask : masks)
        if (mask) in_range("bytes of a mask", int64_t(mask->size()), (num_valid + 31) / 32 * 4, kMaxSize);
    const Ragged bias(bias_ids, bias_starts, rows), bans(banned, banned_starts, rows);
    const Ragged prompts(prompt, prompt_starts, rows), outputs(output, output_starts, rows);
    for (size_t i = 0; i < bias_values.size(); ++i)
        if (!(bias_values.data()[i] < INFINITY)) fail("a logit bias is NaN or infinite; expected a number");
    for (size_t i = 0; i < numbers.size(); ++i)
        if (!std::isfinite(numbers.data()[i]))
            fail("a sampling parameter is NaN or infinite; expected a number");
    std::vector<SampleRow> args(rows);
    for (size_t i = 0; i < rows; ++i) {
        const double* v = numbers.data() + 8 * i;
        if (v[0] < 0.0) fail("temperature=" + std::to_string(v[0]) + "; expected at least 0");
        if (v[7] <= 0.0) fail("repetition_penalty=" + std::to_string(v[7]) + "; expected above 0");
        in_range("top_k", static_cast<int64_t>(std::clamp(v[1], -1.0, 2e9)), 0, kMaxSize);
        args[i] = SampleRow{v[0],
                            v[2],
                            v[3],
                            v[4],
                            v[5],
                            v[6],
                            v[7],
                            static_cast<int32_t>(v[1]),
                            bias.count(i),
                            bans.count(i),
                            prompts.count(i),
                            outputs.count(i),
                            bias.at(i),
                            bias_values.data() + bias.starts[i],
                            bans.at(i),
                            prompts.at(i),
                            outputs.at(i),
                            masks[i] ? static_cast<const uint8_t*>(masks[i]->data()) : nullptr};
    }
    const int valid = static_cast<int>(num_valid);
    run(core, sample_scratch(core.pool, valid), [&](void* scratch) {
        sample(core.pool, logits.data(), rows_of(rows), rows_of(logits.shape(1)), valid, args.data(),
               tokens.data(), scratch);
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
    m.def("packed_bytes", &packed_bytes, nb::arg("format"), nb::arg("experts"), nb::arg("rows"),
          nb::arg("columns"), "Bytes of experts x [rows, columns] in a format.");
    nb::class_<Matrix>(m, "Matrix", "A packed weight, experts x [rows, columns], over a buffer on 64 bytes.")
        .def(nb::init<In<uint8_t, 1>, const std::string&, int64_t, int64_t, int64_t>(), raw("buffer"),
             nb::arg("format"), nb::arg("experts"), nb::arg("rows"), nb::arg("columns"));
    nb::class_<KVCache>(m, "KVCache", "Paged keys and values of all layers.")
        .def(nb::init<int64_t, int64_t, int64_t, int64_t, const std::string&>(), nb::arg("layers"),
             nb::arg("blocks"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("format"))
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
        .def("pack", &pack, nb::arg("w"), raw("buffer"), nb::arg("expert"), nb::arg("first"), raw("values"))
        .def("pack_codes", &pack_codes, nb::arg("w"), raw("buffer"), nb::arg("expert"), nb::arg("first"),
             raw("codes"), raw("scales"), raw("minimums").none())
        .def("embed", &embed, raw("ids"), nb::arg("table"), nb::arg("expert"), raw("y"))
        .def("linear", &linear, raw("x"), nb::arg("w"), raw("bias").none(), raw("y"))
        .def("moe", &moe, raw("x"), raw("router"), nb::arg("gate_up"), nb::arg("down"), nb::arg("top_k"),
             nb::arg("normalise"), raw("y"))
        .def("rms_norm", &rms_norm, raw("x"), raw("weight"), nb::arg("eps"), raw("y"))
        .def("swiglu", &swiglu, raw("gate_up"), raw("y"))
        .def("store_kv", &store_kv, raw("qkv"), raw("q_norm").none(), raw("k_norm").none(), raw("rope"),
             nb::arg("eps"), nb::arg("cache"), nb::arg("layer"), nb::arg("batch"), raw("q"))
        .def("attention", &attention, raw("q"), nb::arg("cache"), nb::arg("layer"), nb::arg("batch"),
             raw("y"))
        .def("sample", &sample_rows, raw("logits"), nb::arg("num_valid"), raw("numbers"), raw("bias_values"),
             raw("bias_ids"), raw("bias_starts"), raw("banned"), raw("banned_starts"), raw("prompt"),
             raw("prompt_starts"), raw("output"), raw("output_starts"), nb::arg("masks"), raw("tokens"));
}
