// Tiles over int8 weights.
#include "tile_core.cuh"

namespace pyllm {
namespace cuda {

void tiles_i8(const TileArgs& a, Type type, Stream stream) { launch_type<Codes::i8>(a, type, stream); }

}  // namespace cuda
}  // namespace pyllm
