/* SPDX-License-Identifier: Apache-2.0 */
/* Groups of neighbouring query tokens, as union.cu and the kernels that read its lists count
 * them. */
#ifndef MLA_CUDA_ANY_UNION_CUH
#define MLA_CUDA_ANY_UNION_CUH

#include "union.h"

/* Number of the group that holds a token of the request. Numbers are unique in the batch, and at
 * most tokens / size + requests. */
__device__ __forceinline__ int group_of(int size, const struct mla_mqa_request &r, int token)
{
    return r.q_start / size + r.index + token / size;
}

/* The request that holds group `number`, found by each warp for itself; -1: none has the number. */
__device__ __forceinline__ int find_group(const struct mla_mqa_request *requests, int count,
                                          int size, int number)
{
    int found = -1;
    for (int i = threadIdx.x % 32; i < count; i += 32) {
        int first = group_of(size, requests[i], 0);
        if (number >= first && number < first + (requests[i].query_len + size - 1) / size)
            found = i;
    }
    return __reduce_max_sync(0xFFFFFFFFu, found);
}

#endif
