/* SPDX-License-Identifier: Apache-2.0 */
/* The one dispatch type. A row of a backend's table is the only registration a kernel has: plans,
 * tests, validation and bench all walk the tables. */
#ifndef MLA_COMMON_KERNEL_H
#define MLA_COMMON_KERNEL_H

#include "mla/cache.h"
#include "mla/index.h"
#include "mla/mla.h"

#define MLA_BIT(enumerator) (1u << (enumerator))

/* One request of a plan, with its places in the batch-wide tensors. */
struct mla_request {
    int64_t index;   /* in the batch */
    int64_t q_start; /* first query row */
    int64_t query_len;
    int64_t kv_start;   /* first key row of a flat cache or of k, v */
    int64_t seq_len_kv; /* planned length; tensors.seq_lens_kv may shorten it at run time */
};

/* Requests of one plan that run together: same route, same kernel. */
struct mla_job {
    const mla_context *context;
    const mla_problem *problem; /* the plan's own copy */
    const struct mla_kernel *kernel;
    mla_route route;
    mla_precision precision;
    const struct mla_request *requests;
    int64_t num_requests;
    bool ignore_lists;      /* dense route over lists that are known to be complete */
    bool named;             /* the caller asked for this kernel by its name */
    bool alone;             /* the plan's only job: nobody else writes to its workspace */
    int64_t wanted_splits;  /* 0 = choose; MLA_SPLITS_ALONE */
    size_t workspace_limit; /* bytes; 0 = the kernel's default */
    /* set by prepare: */
    int64_t num_splits;
    int64_t rows_per_pass;
    size_t workspace_bytes;
    void *data; /* the kernel's own, freed by release */
};

struct mla_kernel {
    const char *name; /* file stem, plus tile if several */
    const char *architecture;
    mla_backend backend;
    mla_proof proof;
    bool last_resort;                /* slow: chosen only where no other row serves any route */
    unsigned routes, forms, formats; /* MLA_BIT sets; formats of mla_cache_format */
    const void *engine; /* rows that share the functions below: what tells them apart, or NULL */
    /* Can it take the job? If not, writes why as a clause ("heads_q 200, at most 128"). The bit
     * sets above, and the problem itself, have been checked before. */
    bool (*supports)(const struct mla_job *job, char *why, size_t bytes);
    /* Chooses splits and rows_per_pass under workspace_limit, sets workspace_bytes, may
     * allocate. */
    mla_status (*prepare)(struct mla_job *job);
    void (*release)(struct mla_job *job); /* may be NULL */
    /* Tensors have been checked. workspace is 256-byte aligned, workspace_bytes long. */
    mla_status (*run)(const struct mla_job *job, const mla_tensors *tensors, void *workspace,
                      void *stream);
};

struct mla_route_table;
struct mla_context {
    mla_backend backend;
    int device;
    int threads; /* resolved, >= 1 */
    int sm;      /* CUDA: 10·major + minor; 0 elsewhere */
    char about[192];
    char identity[160]; /* what a qualification holds for: device, architecture, driver */
    char *qualified;    /* "\nname\nname\n", or NULL; qualify.h */
    struct mla_route_table *crossovers; /* measured route times, or NULL; crossover.h */
    void *data;                         /* the backend's own */
};

struct mla_cache_layout; /* record.h */

/* What a backend registers; one row in common/plan.c. */
struct mla_backend_ops {
    mla_backend backend;
    const struct mla_kernel *const *kernels; /* ordered best first, NULL at the end */
    /* Fills context or leaves a sentence; MLA_ERR_NO_DEVICE if it can't serve here. */
    mla_status (*open)(const mla_context_options *options, mla_context *context);
    void (*close)(mla_context *context);
    mla_status (*merge)(const mla_context *context, const mla_merge_args *args, void *stream);
    bool (*runnable)(const struct mla_kernel *kernel); /* here, now */
    /* mla/cache.h: all four, or NULL. Arguments have been checked; slots only on the CPU, since
     * they lie in backend memory: others skip a slot outside the cache. */
    mla_status (*cache_write)(const mla_context *context, const mla_cache *cache,
                              const struct mla_cache_layout *layout, const mla_cache_values *values,
                              const int64_t *slots, int64_t n, mla_scale_rule rule, void *stream);
    mla_status (*cache_read)(const mla_context *context, const mla_cache *cache,
                             const struct mla_cache_layout *layout, const int64_t *slots, int64_t n,
                             const mla_cache_values *values, void *stream);
    mla_status (*cache_index_write)(const mla_context *context, const mla_cache_index *cache,
                                    mla_dtype dtype, const mla_tensor *keys, const int64_t *slots,
                                    int64_t n, mla_scale_rule rule, void *stream);
    mla_status (*cache_index_read)(const mla_context *context, const mla_cache_index *cache,
                                   const int64_t *slots, int64_t n, mla_dtype dtype,
                                   const mla_tensor *keys, void *stream);
    /* mla/index.h: both or neither of a pair. Shapes have been checked, before run tensors and
     * workspace too. longest: keys of the longest request. function: for sentences. */
    mla_status (*index_workspace)(const char *function, const mla_context *context,
                                  const mla_index_args *args, int64_t longest, size_t *bytes);
    mla_status (*index_run)(const mla_context *context, const mla_index_args *args, int64_t longest,
                            void *workspace, void *stream);
    mla_status (*topk_workspace)(const char *function, const mla_context *context,
                                 const mla_topk_args *args, size_t *bytes);
    mla_status (*topk_run)(const mla_context *context, const mla_topk_args *args, void *workspace,
                           void *stream);
};

extern const struct mla_backend_ops mla_cpu_backend; /* reference/table.c */
#ifdef MLA_WITH_CUDA
extern const struct mla_backend_ops mla_cuda_backend; /* cuda/table.c */
#endif
#ifdef MLA_WITH_MODEL
extern const struct mla_backend_ops mla_model_backend; /* cuda/table.c, compiled for cuda/model */
#endif

/* Derived sizes. */
static inline int64_t mla_d_qk(const mla_problem *p)
{
    return (p->form == MLA_FORM_ABSORBED ? p->kv_lora_rank : p->qk_nope_dim) + p->qk_rope_dim;
}
static inline int64_t mla_d_v(const mla_problem *p) /* width of out */
{
    return p->form == MLA_FORM_ABSORBED ? p->kv_lora_rank : p->v_dim;
}
static inline int64_t mla_total_q(const mla_problem *p)
{
    return p->batch ? p->cu_seqlens_q[p->batch] : 0;
}

/* Stride or its packed default. */
static inline int64_t mla_stride0(const mla_tensor *t, int64_t packed)
{
    return t->stride[0] ? t->stride[0] : packed;
}
static inline int64_t mla_stride1(const mla_tensor *t, int64_t packed)
{
    return t->stride[1] ? t->stride[1] : packed;
}

/* Keys of request r in this run, and the exclusive upper end of what its query row i may see by
 * causality (may be <= 0). */
static inline int64_t mla_run_seq_len(const struct mla_request *r, const mla_tensors *t)
{
    int64_t n = t->seq_lens_kv ? t->seq_lens_kv[r->index] : r->seq_len_kv;
    return n < 0 ? 0 : n > r->seq_len_kv ? r->seq_len_kv : n;
}
static inline int64_t mla_causal_end(const mla_problem *p, const struct mla_request *r, int64_t i,
                                     int64_t seq_len_kv)
{
    return p->causal ? seq_len_kv - r->query_len + i + 1 : seq_len_kv;
}

#endif
