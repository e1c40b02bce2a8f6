/* SPDX-License-Identifier: Apache-2.0 */
/* The tiles of mqa.cuh for bf16 queries of several tokens over the union of their lists. */
#include "mqa.cuh"

extern "C" struct mla_mqa_tile mla_mqa_group_tile_bf16(int rows, int rope_dim, bool packed)
{
    return tile_of<bf16, true>(rows, rope_dim, packed);
}
