/* SPDX-License-Identifier: Apache-2.0 */
/* The tiles of mqa.cuh for bf16 queries. */
#include "mqa_wide.cuh"

extern "C" struct mla_mqa_tile mla_mqa_tile_bf16(int rows, int rope_dim, bool packed)
{
    if (rows == 64 && !packed)
        return rope_dim ? wide_entry<64, bf16>() : wide_entry<0, bf16>();
    return tile_of<bf16>(rows, rope_dim, packed);
}

MLA_MUTANT_SETTER(mqa_bf16)
