// The products of the weight formats of 4 bits: tiles.h, compiled for each.
#include "tiles.h"

namespace deepfast::DF_ISA {

template void multiply_format<Format::q4>(const Product&, int, int);
template void multiply_format<Format::q4_min>(const Product&, int, int);
template void multiply_format<Format::q4_k>(const Product&, int, int);
template void multiply_format<Format::q4_k16>(const Product&, int, int);

}  // namespace deepfast::DF_ISA
