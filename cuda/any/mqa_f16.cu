/* SPDX-License-Identifier: Apache-2.0 */
/* The tiles of mqa.cuh for f16 queries. */
#include "mqa.cuh"

extern "C" struct mla_mqa_tile mla_mqa_tile_f16(int rows, int rope_dim, bool packed)
{
    return tile_of<f16, false>(rows, rope_dim, packed);
}
