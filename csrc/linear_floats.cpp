// The products of the weight float formats: tiles.h, compiled for each.
#include "tiles.h"

namespace deepfast::DF_ISA {

template void multiply_format<Format::f32>(const Product&, int, int);
template void multiply_format<Format::bf16>(const Product&, int, int);

}  // namespace deepfast::DF_ISA
