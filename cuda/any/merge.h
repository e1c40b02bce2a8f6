/* SPDX-License-Identifier: Apache-2.0 */
/* What mla_merge passes to its kernel in combine.cu. */
#ifndef MLA_CUDA_ANY_MERGE_H
#define MLA_CUDA_ANY_MERGE_H

#include "kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_MERGE_PARTS = 32 }; /* pointers and strides fit the 4 KB of kernel arguments */

struct mla_merge_parts {
    int64_t rows, heads, dim;
    int32_t parts, part_dtype, out_dtype, plus_inf_is_empty;
    float to_log2, lse_unit; /* a part's lse to log2, and log2 to the result's unit */
    const void *out[MLA_MERGE_PARTS];
    const float *lse[MLA_MERGE_PARTS];
    int64_t out_stride[MLA_MERGE_PARTS][2], lse_stride[MLA_MERGE_PARTS][2];
    const float *sink;
    void *to;
    float *to_lse;
    int64_t to_stride[2], to_lse_stride[2];
};

const void *mla_merge_function(void);

#ifdef __cplusplus
}
#endif
#endif
