/* SPDX-License-Identifier: Apache-2.0 */
/* Device side of what the indexer's engines share: which keys a row sees, where a key lies, where a
 * row's list goes. */
#ifndef MLA_CUDA_ANY_INDEX_ROWS_CUH
#define MLA_CUDA_ANY_INDEX_ROWS_CUH

#include "../ptx/convert.cuh"
#include "index_plan.h"
#include "select.cuh"

/* Keys [low, high) that row t of the request may see, page ids aside. */
__device__ __forceinline__ void row_range(const struct index_launch &a,
                                          const struct index_request &r, int t, int *low, int *high)
{
    int64_t start = a.key_start ? a.key_start[t] : 0, end = r.seq_len;
    if (a.causal)
        end = min(end, (int64_t)r.seq_len - r.query_len + (t - r.q_start) + 1);
    if (a.key_end)
        end = min(end, (int64_t)a.key_end[t]);
    *low = (int)max(start, (int64_t)0);
    *high = (int)max(end, (int64_t)*low);
}

/* Address of key pos of the request, NULL if it lies on no page; *scale to where its scale is. */
__device__ __forceinline__ const char *find_key(const struct index_launch &a,
                                                const struct index_request &r, const int32_t *pages,
                                                int pos, const char **scale)
{
    if (a.page_size == 0) {
        int64_t row = r.first_key + pos;
        *scale = a.k_scale ? a.k_scale + 4 * row : NULL;
        return a.k + row * a.k_row;
    }
    uint32_t column = (uint32_t)pos / (uint32_t)a.page_size, slot = pos - column * a.page_size;
    int page = pages[column];
    if (page < 0 || page >= a.num_pages)
        return NULL;
    const char *base = a.k + page * a.page_bytes;
    *scale = base + (int64_t)a.page_size * a.dim + 4 * slot;
    return base + (int64_t)slot * a.dim;
}

__device__ __forceinline__ struct list_out row_list(const struct index_launch &a, int64_t t,
                                                    int low)
{
    struct list_out out = {};
    out.indices = a.indices + t * a.index_stride;
    out.scores = a.scores ? a.scores + t * a.score_stride : NULL;
    out.len = a.lens ? a.lens + t : NULL;
    out.topk = a.topk;
    out.base = a.relative ? low : 0;
    out.ascending = a.ascending;
    return out;
}

__device__ __forceinline__ float relu(float x) /* keeps NaN */
{
    return max_nan_f32(x, 0.0f);
}

#endif
