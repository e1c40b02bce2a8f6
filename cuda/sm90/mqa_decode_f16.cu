/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of mqa_decode.cuh for f16. */
#include "mqa_decode.cuh"

struct mla_mqa_tile mla_decode90_tile_f16(int rope_dim)
{
    return rope_dim ? decode_alone<f16, plain_rows<64>>() : decode_alone<f16, plain_rows<0>>();
}
