/* SPDX-License-Identifier: Apache-2.0 */
/* Entries of the CUDA backend's table for mla/cache.h (codec.cu) and mla/index.h
 * (index_plan.c, topk.cu). */
#ifndef MLA_CUDA_ANY_INDEX_H
#define MLA_CUDA_ANY_INDEX_H

#include "kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

mla_status mla_cuda_cache_write(const mla_context *context, const mla_cache *cache,
                                const struct mla_cache_layout *layout,
                                const mla_cache_values *values, const int64_t *slots, int64_t n,
                                mla_scale_rule rule, void *stream);
mla_status mla_cuda_cache_read(const mla_context *context, const mla_cache *cache,
                               const struct mla_cache_layout *layout, const int64_t *slots,
                               int64_t n, const mla_cache_values *values, void *stream);
mla_status mla_cuda_cache_index_write(const mla_context *context, const mla_cache_index *cache,
                                      mla_dtype dtype, const mla_tensor *keys, const int64_t *slots,
                                      int64_t n, mla_scale_rule rule, void *stream);
mla_status mla_cuda_cache_index_read(const mla_context *context, const mla_cache_index *cache,
                                     const int64_t *slots, int64_t n, mla_dtype dtype,
                                     const mla_tensor *keys, void *stream);
mla_status mla_cuda_index_workspace(const char *function, const mla_context *context,
                                    const mla_index_args *args, int64_t longest, size_t *bytes);
mla_status mla_cuda_index_run(const mla_context *context, const mla_index_args *args,
                              int64_t longest, void *workspace, void *stream);
mla_status mla_cuda_topk_workspace(const char *function, const mla_context *context,
                                   const mla_topk_args *args, size_t *bytes);
mla_status mla_cuda_topk_run(const mla_context *context, const mla_topk_args *args, void *workspace,
                             void *stream);

/* Items of one row's buffer: the more, the fewer selections. At least k and what comes in between
 * two looks at the count, and room to sort k of them in place. */
static inline int64_t mla_index_capacity(int64_t k, int64_t step, bool small)
{
    int64_t power = 1, most = small ? k + step : 3 * k > k + 2 * step ? 3 * k : k + 2 * step;
    while (power < k)
        power *= 2;
    most = most > power ? most : power;
    return (most + 15) & ~(int64_t)15;
}

#ifdef __cplusplus
}
#endif
#endif
