// The table of one ISA's kernels: compiled once per ISA, beside the kernels it names.
#include "kernels.h"

#define DF_TEXT_OF(x) #x
#define DF_TEXT(x) DF_TEXT_OF(x)

namespace deepfast::DF_ISA {

extern const Ops ops;
const Ops ops = {DF_TEXT(DF_ISA), pack,     pack_codes,        embed,     linear_scratch, linear,
                 mlp_scratch,     mlp,      moe_scratch,       moe,       rms_norm,       store_kv,
                 attention_scratch, attention, probe_dots, probe_read};

}  // namespace deepfast::DF_ISA
