// Which instruction sets were built and run on this machine, best first. Asked once, when a core is made.
#include <string.h>

#include "ops.h"

namespace deepfast {

#ifdef DEEPFAST_HAVE_X86
namespace avx512 {
extern const Ops ops;
}
namespace avx2 {
extern const Ops ops;
}
#endif
namespace scalar {
extern const Ops ops;
}

namespace {

#ifdef DEEPFAST_HAVE_X86
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
#ifdef DEEPFAST_EMULATE_AVX512
    return has_avx2();
#else
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
#endif
}
#endif

struct Supported {
    const Ops* tables[4] = {};
    const char* names[4] = {};

    Supported() {
        int n = 0;
#ifdef DEEPFAST_HAVE_X86
        __builtin_cpu_init();
        if (has_avx512()) tables[n++] = &avx512::ops;
        if (has_avx2()) tables[n++] = &avx2::ops;
#endif
        tables[n++] = &scalar::ops;
        for (int i = 0; i < n; ++i) names[i] = tables[i]->name;
    }
};

const Supported& supported() {
    static const Supported found;
    return found;
}

}  // namespace

const Ops* find_ops(const char* name) {
    for (const Ops* table : supported().tables)
        if (table && strcmp(table->name, name) == 0) return table;
    return nullptr;
}

const char* const* supported_isas() { return supported().names; }

}  // namespace deepfast
