/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of mqa_decode.cuh for bf16. */
#include "mqa_decode.cuh"

template <class F> static struct mla_mqa_tile packed_tile(bool pair)
{
    return pair ? decode_pair<bf16, F>() : decode_alone<bf16, F>();
}

struct mla_mqa_tile mla_decode90_tile_bf16(int cache_format, int rope_dim, bool pair, bool masks)
{
    switch (cache_format) {
    case MLA_CACHE_FP8_DS_MLA:
        return masks ? decode_alone<bf16, fp8_rows>() : packed_tile<fp8_stream>(pair);
    case MLA_CACHE_MODEL1:
        return packed_tile<model1_rows>(pair);
    case MLA_CACHE_V41:
        return packed_tile<v41_rows>(pair);
    case MLA_CACHE_NVFP4_DS_MLA:
        return packed_tile<nvfp4_rows>(pair);
    default:
        return rope_dim ? decode_alone<bf16, plain_rows<64>>()
                        : decode_alone<bf16, plain_rows<0>>();
    }
}
