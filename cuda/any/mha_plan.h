/* SPDX-License-Identifier: Apache-2.0 */
/* Host side of expanded-form attention: what a kernel row, of expanded or latent problems, calls.
 * An engine is what differs from one architecture's kernels to another's; segments, passes, masks
 * and projections are the same for all. A row names its engine; each engine has two rows.
 *
 *   prepare: mla_mha_prepare cuts the requests into passes of query rows whose mask fits the budget
 *            and puts their table on the device; mla_mha_mask_bytes of the workspace hold the mask
 *   run:     mla_mha_launch, with q, k and v wherever they lie; launches only
 *   release: mla_mha_release */
#ifndef MLA_CUDA_ANY_MHA_PLAN_H
#define MLA_CUDA_ANY_MHA_PLAN_H

#include "kernel.h"
#include "mha.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mla_mha_plan;

/* q, k and v of one launch and where the result goes; strides in elements, all given. heads of them
 * from first_head of the problem on (a latent problem may come in groups of heads). */
struct mla_mha_operands {
    int64_t first_head, heads, heads_kv, d_qk, d_v;
    mla_dtype dtype;
    int64_t rows_q, rows_kv; /* that exist, of all requests */
    mla_tensor q, k, v;
    mla_tensor q_rope; /* columns q_split … d_qk - 1 of q; not looked at where q_split = d_qk */
    int64_t q_split;
    /* The same of k, one row for all heads; only for engines with split_keys. */
    mla_tensor k_rope;
    int64_t k_split;
    mla_tensor out; /* of head 0 of the problem; out_dtype of the problem */
    const uint32_t
        *alive; /* or NULL: a bit for each key, requests of the job one after another, each
                              from a new word on; 0 hides the key */
};

struct mla_mha_engine {
    /* Beyond what mla_mha_supports has checked for all: the device, widths, layouts. If not, writes
     * why as a clause. */
    bool (*supports)(const struct mla_job *job, mla_dtype dtype, int64_t d_qk, int64_t d_v,
                     char *why, size_t bytes);
    /* The block that holds these widths; function NULL if none does. */
    struct mla_mha_tile (*tile)(mla_dtype dtype, int64_t d_qk, int64_t d_v);
    size_t most_shared; /* bytes of shared memory of a block; 0 = what the device has */
    bool ordered;       /* args.order is wanted */
    bool split_keys;    /* reads k_rope where it lies */
    /* An engine may have an order of its own for a mask's bits, so many bytes of a query tile and
     * 32 keys, and a kernel that makes them and the columns (zero before; tiles of the pass). Words
     * of a row are then a multiple of 4. */
    size_t mask_bytes;
    mla_status (*make_mask)(const struct mla_mask_args *args, int64_t tiles, void *stream);
    const void *(*mask_function)(void);
    size_t mask_shared;   /* its bytes of shared memory */
    size_t scratch_bytes; /* of one launch, at most 256 */
    /* Launches the attention of one pass. The context's device is current; args hold everything but
     * what lies behind q, k and v, which operands describe. zeroed: scratch is zero already. */
    mla_status (*launch)(const struct mla_job *job, const struct mla_mha_tile *tile,
                         const struct mla_mha_args *args, const struct mla_mha_operands *operands,
                         void *scratch, bool zeroed, void *stream);
};

/* The fields of a row beside name, architecture, proof and engine. */
#define MLA_MHA_EXPANDED_ROW                                                                       \
    .backend = MLA_BACKEND_CUDA,                                                                   \
    .routes = MLA_BIT(MLA_ROUTE_DENSE_MHA) | MLA_BIT(MLA_ROUTE_MASKED_MHA),                        \
    .forms = MLA_BIT(MLA_FORM_EXPANDED), .supports = mla_mha_row_supports,                         \
    .prepare = mla_mha_row_prepare, .release = mla_mha_row_release, .run = mla_mha_row_run
#define MLA_MHA_LATENT_ROW                                                                         \
    .backend = MLA_BACKEND_CUDA,                                                                   \
    .routes = MLA_BIT(MLA_ROUTE_DENSE_MHA) | MLA_BIT(MLA_ROUTE_MASKED_MHA),                        \
    .forms = MLA_BIT(MLA_FORM_LATENT),                                                             \
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_FP8_DS_MLA) |  \
               MLA_BIT(MLA_CACHE_NVFP4_DS_MLA),                                                    \
    .supports = mla_mha_latent_supports, .prepare = mla_mha_latent_prepare,                        \
    .release = mla_mha_latent_release, .run = mla_mha_latent_run

/* mha.c */
bool mla_mha_row_supports(const struct mla_job *job, char *why, size_t bytes);
mla_status mla_mha_row_prepare(struct mla_job *job);
void mla_mha_row_release(struct mla_job *job);
mla_status mla_mha_row_run(const struct mla_job *job, const mla_tensors *tensors, void *workspace,
                           void *stream);
/* latent_mha.c */
bool mla_mha_latent_supports(const struct mla_job *job, char *why, size_t bytes);
mla_status mla_mha_latent_prepare(struct mla_job *job);
void mla_mha_latent_release(struct mla_job *job);
mla_status mla_mha_latent_run(const struct mla_job *job, const mla_tensors *tensors,
                              void *workspace, void *stream);

/* Can the engine of the job's row take these widths and types? If not, why. */
bool mla_mha_supports(const struct mla_job *job, mla_dtype dtype, int64_t d_qk, int64_t d_v,
                      char *why, size_t bytes);
/* heads: the most of one launch. Sets job->rows_per_pass. */
mla_status mla_mha_prepare(struct mla_job *job, int64_t heads, int64_t d_qk, int64_t d_v,
                           mla_dtype dtype, struct mla_mha_plan **out);
void mla_mha_release(struct mla_mha_plan *plan);
size_t mla_mha_mask_bytes(const struct mla_mha_plan *plan);

/* sm_80's 16-byte copies: MLA_ERR_ARGUMENT unless address and strides are multiples of 16 bytes. */
mla_status mla_mha_check_rows(const char *name, const mla_tensor *t);
/* The same of out, which is written in pairs. */
mla_status mla_mha_check_out(const mla_tensor *out);

/* mask: mla_mha_mask_bytes, 256-byte aligned. The context's device is current. With several passes
 * the mask is made anew for each; with one it is kept in `mask` for a later call with build_mask
 * false. */
mla_status mla_mha_launch(const struct mla_job *job, const struct mla_mha_plan *plan,
                          const mla_tensors *tensors, const struct mla_mha_operands *operands,
                          void *mask, bool build_mask, void *stream);
/* Is one mask kept for all calls? */
bool mla_mha_one_pass(const struct mla_mha_plan *plan);

#ifdef __cplusplus
}
#endif
#endif
