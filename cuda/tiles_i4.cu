// Tiles over int4 weights.
#include "tile_core.cuh"

namespace pyllm {
namespace cuda {

void tiles_i4(const TileArgs& a, Type type, Stream stream) { launch_type<Codes::i4>(a, type, stream); }

}  // namespace cuda
}  // namespace pyllm
