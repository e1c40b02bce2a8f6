/* SPDX-License-Identifier: Apache-2.0 */
/* The tiles of mqa.cuh for f16 queries. */
#include "mqa_wide.cuh"

extern "C" struct mla_mqa_tile mla_mqa_tile_f16(int rows, int rope_dim, bool packed)
{
    if (rows == 64 && !packed)
        return rope_dim ? wide_entry<64, f16>() : wide_entry<0, f16>();
    return tile_of<f16>(rows, rope_dim, packed);
}
