/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of mqa_decode.cuh for bf16. */
#include "mqa_decode.cuh"

struct mla_mqa_tile mla_decode90_tile_bf16(int cache_format, int rope_dim, bool pair)
{
    switch (cache_format) {
    case MLA_CACHE_FP8_DS_MLA:
        return decode_tile<bf16, fp8_rows>(pair);
    case MLA_CACHE_MODEL1:
        return decode_tile<bf16, model1_rows>(pair);
    case MLA_CACHE_V41:
        return decode_tile<bf16, v41_rows>(pair);
    case MLA_CACHE_NVFP4_DS_MLA:
        return decode_tile<bf16, nvfp4_rows>(pair);
    default:
        return rope_dim ? decode_tile<bf16, plain_rows<64>>(false)
                        : decode_tile<bf16, plain_rows<0>>(false);
    }
}
