/* SPDX-License-Identifier: Apache-2.0 */
/* The tiles of mqa.cuh for f16 queries. */
#include "mqa_wide.cuh"

extern "C" struct mla_mqa_tile mla_mqa_tile_f16(int rows, int rope_dim, bool packed)
{
    return rows == 64 ? wide_tile_of<f16>(rope_dim, packed) : tile_of<f16>(rows, rope_dim, packed);
}
