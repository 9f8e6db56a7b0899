// The products of the weight formats of 8 bits: tiles.h, compiled for each.
#include "tiles.h"

namespace deepfast::DF_ISA {

template void multiply_format<Format::q8>(const Product&, int, int);
template void multiply_format<Format::q8_k>(const Product&, int, int);
template void multiply_format<Format::q8_k16>(const Product&, int, int);
template void multiply_format<Format::q8_k16_min>(const Product&, int, int);

}  // namespace deepfast::DF_ISA
