/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the CPU backend. */
#ifndef MLA_REFERENCE_REFERENCE_H
#define MLA_REFERENCE_REFERENCE_H

#include "common/kernel.h"

/* The oracle: one query row t of request r, one head h, in plain double loops (attend_naive.c).
 * out [d_v], lse and max_logit in problem's base (max_logit is natural), any may be NULL.
 * Returns 0, or -1 when its scratch (seq_len_kv doubles) cannot be allocated. */
int mla_attend_naive(const mla_problem *problem, const mla_tensors *tensors,
                     const struct mla_request *request, int64_t row, int64_t head, double *out,
                     double *lse, double *max_logit);

/* The one place that knows masks: may query row i (0-based in its request) see key j? */
bool mla_visible(const mla_problem *problem, const mla_tensors *tensors,
                 const struct mla_request *request, int64_t i, int64_t j, int64_t seq_len_kv);

/* BLAS runs one thread a call between enter and leave, whatever flavour of OpenBLAS is loaded,
 * while the caller's own setting comes back after the last leave. Any thread; calls may overlap. */
struct mla_blas_guard {
    int openmp_threads;
};
void mla_blas_enter(struct mla_blas_guard *guard, int team);
void mla_blas_leave(struct mla_blas_guard *guard);

/* Entries of the backend's table: cache.c, index.c, topk.c. */
mla_status mla_cache_write_cpu(const mla_context *context, const mla_cache *cache,
                               const struct mla_cache_layout *layout,
                               const mla_cache_values *values, const int64_t *slots, int64_t n,
                               mla_scale_rule rule, void *stream);
mla_status mla_cache_read_cpu(const mla_context *context, const mla_cache *cache,
                              const struct mla_cache_layout *layout, const int64_t *slots,
                              int64_t n, const mla_cache_values *values, void *stream);
mla_status mla_cache_index_write_cpu(const mla_context *context, const mla_cache_index *cache,
                                     mla_dtype dtype, const mla_tensor *keys, const int64_t *slots,
                                     int64_t n, mla_scale_rule rule, void *stream);
mla_status mla_cache_index_read_cpu(const mla_context *context, const mla_cache_index *cache,
                                    const int64_t *slots, int64_t n, mla_dtype dtype,
                                    const mla_tensor *keys, void *stream);
mla_status mla_index_workspace_cpu(const char *function, const mla_context *context,
                                   const mla_index_args *args, int64_t longest, size_t *bytes);
mla_status mla_index_run_cpu(const mla_context *context, const mla_index_args *args,
                             int64_t longest, void *workspace, void *stream);
mla_status mla_topk_workspace_cpu(const char *function, const mla_context *context,
                                  const mla_topk_args *args, size_t *bytes);
mla_status mla_topk_run_cpu(const mla_context *context, const mla_topk_args *args, void *workspace,
                            void *stream);

/* Name of the BLAS that is loaded, its core type and threading, for mla info. */
const char *mla_blas_describe(void);

#endif
