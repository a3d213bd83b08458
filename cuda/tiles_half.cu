// Tiles over bf16 and f16 weights.
#include "tile_core.cuh"

namespace pyllm {
namespace cuda {

void tiles_half(const TileArgs& a, Type type, Stream stream) { launch_type<Codes::half>(a, type, stream); }

}  // namespace cuda
}  // namespace pyllm
