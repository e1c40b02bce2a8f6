/* SPDX-License-Identifier: Apache-2.0 */
/* The tiles of sparse_mqa.cuh for bf16 queries. */
#include "sparse_mqa.cuh"

extern "C" struct mla_mqa_tile mla_sparse_any_tile_bf16(int rows, int rope_dim, bool group)
{
    return rows == 16 ? sparse_tile_of<16, bf16>(rope_dim, group)
                      : sparse_tile_of<32, bf16>(rope_dim, group);
}
